"""Learning to classify bags of words: the mean of a bag's rows against all labels, or along a tree of labels.

After Joulin et al., "Bag of Tricks for Efficient Text Classification", 2017. Legend: S floats of a row, L labels.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return"

from __future__ import annotations

import math

import numpy as np
from numba import njit

_BAG = "i4[::1], i4[::1], i8, i8"
_TREE = "i4[::1], i1[::1], i8[::1]"


@njit(f"void({_BAG}, f4[:, ::1], f4[::1])", nogil=True, cache=True, fastmath=True)
def mean_row(rows, counts, first, last, inputs, h):
    """Write the mean of the rows of a bag to `h` (S,); rows of -1 are zero, and count."""
    size = h.shape[0]
    h[:] = np.float32(0)
    total = 0
    for at in range(first, last):
        total += counts[at]
        if rows[at] >= 0:
            row, count = np.uint64(rows[at]), np.float32(counts[at])
            for d in range(size):
                h[d] += inputs[row, d] * count
    if total:
        scale = np.float32(1) / np.float32(total)
        for d in range(size):
            h[d] *= scale


@njit("f4(f4[::1], f4[:, ::1], u8)", nogil=True, cache=True, fastmath=True)
def _dot(a, rows, number):
    """Return the product of `a` and a row: no view of it, whose references threads would count together."""
    total = np.float32(0)
    for d in range(a.shape[0]):
        total += a[d] * rows[number, d]
    return total


@njit("void(f4[::1], f4[:, ::1], f4[::1])", nogil=True, cache=True)
def softmax(h, outputs, p):
    """Write the probabilities of all labels to `p` (L,)."""
    top = np.float32(-1e30)
    for label in range(p.shape[0]):
        p[label] = _dot(h, outputs, np.uint64(label))
        top = max(top, p[label])
    total = 0.0
    for label in range(p.shape[0]):
        p[label] = math.exp(p[label] - top)
        total += p[label]
    for label in range(p.shape[0]):
        p[label] /= np.float32(total)


@njit(f"void(f4[::1], f4[:, ::1], {_TREE}, f4[::1])", nogil=True, cache=True)
def tree_probabilities(h, outputs, nodes, codes, starts, p):
    """Write the probabilities of all labels of a tree to `p` (L,): label l turns by codes[starts[l]:…] at those nodes."""
    for label in range(p.shape[0]):
        logarithm = 0.0
        for at in range(starts[label], starts[label + 1]):
            x = float(_dot(h, outputs, np.uint64(nodes[at])))
            logarithm -= math.log1p(math.exp(min(-x if codes[at] else x, 80.0)))
        p[label] = math.exp(logarithm)


@njit(
    f"f8[::1](i4[::1], i4[::1], i8[::1], i4[::1], i8[::1], f4[:, ::1], f4[:, ::1], f8, f8, {_TREE})",
    nogil=True,
    cache=True,
    fastmath=True,
)
def classify(rows, counts, lines, labels, order, inputs, outputs, first_rate, last_rate, nodes, codes, starts):
    """Learn from lines in the given order; return sums over those with labels: losses, lines, squared lengths of bags' means.

    Args:
        rows: of all bags.
        counts: beside them.
        lines: ends of each line's rows and labels, after a leading pair of zeros.
        labels: of all lines; where a line has several, each is as right.
        order: numbers of the lines to learn from.
        inputs: (R, S).
        outputs: (L, S).
        first_rate: learning rate at the first line.
        last_rate: and after the last one.
        nodes: of the tree, see `tree_probabilities`; empty: all labels are weighed against each other.
        codes: of the tree.
        starts: of the tree.
    """
    size, classes = inputs.shape[1], outputs.shape[0]
    h = np.zeros(size, np.float32)
    change = np.zeros(size, np.float32)
    p = np.zeros(classes, np.float32)
    found = np.zeros(3)
    for i in range(order.shape[0]):
        line = order[i]
        first, last = lines[2 * line], lines[2 * line + 2]
        first_label, last_label = lines[2 * line + 1], lines[2 * line + 3]
        if last == first or last_label == first_label:
            continue
        rate = np.float32(first_rate + (last_rate - first_rate) * (i / order.shape[0]))
        mean_row(rows, counts, first, last, inputs, h)
        for d in range(size):
            found[2] += h[d] * h[d]
        share = np.float32(1.0 / (last_label - first_label))
        change[:] = np.float32(0)
        if nodes.shape[0] == 0:
            softmax(h, outputs, p)
            for at in range(first_label, last_label):
                found[0] -= share * math.log(max(float(p[labels[at]]), 1e-7))
            for label in range(classes):
                wanted = np.float32(0)
                for at in range(first_label, last_label):
                    if labels[at] == label:
                        wanted += share
                step = (wanted - p[label]) * rate
                for d in range(size):
                    change[d] += step * outputs[label, d]
                    outputs[label, d] += step * h[d]
        else:
            for at_label in range(first_label, last_label):
                label = labels[at_label]
                for at in range(starts[label], starts[label + 1]):
                    node = np.uint64(nodes[at])
                    q = 1.0 / (1.0 + math.exp(-float(_dot(h, outputs, node))))
                    found[0] -= share * math.log(max(q if codes[at] else 1.0 - q, 1e-7))
                    step = np.float32(codes[at] - q) * rate * share
                    for d in range(size):
                        change[d] += step * outputs[node, d]
                        outputs[node, d] += step * h[d]
        total = 0
        for at in range(first, last):
            total += counts[at]
        scale = np.float32(1) / np.float32(total)
        for d in range(size):
            change[d] *= scale
        for at in range(first, last):
            if rows[at] >= 0:
                row, count = np.uint64(rows[at]), np.float32(counts[at])
                for d in range(size):
                    inputs[row, d] += count * change[d]
        found[1] += 1
    return found


@njit("i8[::1](i4[::1], i8[::1], i8[::1], b1[::1])", nogil=True, cache=True)
def rows_of(rows, lines, order, seen):
    """Return the rows of the bags of lines `order`, each once and without -1; `seen` (R,) is false, and is again afterwards."""
    count = 0
    for line in order:
        count += lines[2 * line + 2] - lines[2 * line]
    found = np.empty(count, np.int64)
    used = 0
    for line in order:
        for at in range(lines[2 * line], lines[2 * line + 2]):
            row = rows[at]
            if row >= 0 and not seen[row]:
                seen[row] = True
                found[used] = row
                used += 1
    for i in range(used):
        seen[found[i]] = False
    return found[:used]


@njit(f"void(i4[::1], i4[::1], i8[::1], f4[:, ::1], f4[:, ::1], {_TREE}, f4[:, ::1])", nogil=True, cache=True)
def probabilities(rows, counts, lines, inputs, outputs, nodes, codes, starts, out):
    """Write the probabilities of all labels of every line to `out` (lines, L); a line without words is left at zero."""
    h = np.zeros(inputs.shape[1], np.float32)
    for line in range(out.shape[0]):
        first, last = lines[2 * line], lines[2 * line + 2]
        if first == last:
            continue
        mean_row(rows, counts, first, last, inputs, h)
        if nodes.shape[0] == 0:
            softmax(h, outputs, out[line])
        else:
            tree_probabilities(h, outputs, nodes, codes, starts, out[line])
