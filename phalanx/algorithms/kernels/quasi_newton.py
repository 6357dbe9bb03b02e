"""Loops of L-BFGS over the weights of many problems at once, each of which reads what it needs once and leaves no copies.

A loop takes a run of rows; what it adds up by column the caller adds over runs in their order, so threads change no bits. An
L1 penalty goes by orthants: where a weight is zero the steepest way down is that of the gradient shrunk by the penalty.

Legend of shapes: J rows of a run, M columns, one a problem's output; all arrays but those of M numbers are (J, M). Where
`ends`, the run's last row is the bias, which L1 spares.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from numba import njit


@njit(nogil=True, inline="always")
def _steepest(weight, gradient, l1):
    sign = 1.0 if weight > 0.0 else -1.0
    shrunk = max(gradient - l1, 0.0) + min(gradient + l1, 0.0)
    return gradient + l1 * sign if weight != 0.0 else shrunk


@njit("void(f8[:, ::1], f8[:, ::1], f8[::1], f8[::1], f8, b1, b1, f8[:, ::1])", nogil=True, cache=True)
def penalise(weights, gradient, wd, l1, bias_wd, use_bias, ends, sums):
    """Add the L2 penalty's slope to `gradient`, wd/2·w² to `sums[0]` (M,) and l1·|w| to `sums[1]`; `bias_wd` is over wd."""
    last = weights.shape[0] - 1 if ends else weights.shape[0]
    for j in range(last):
        for m in range(wd.shape[0]):
            weight = weights[j, m]
            slope = wd[m] * weight
            gradient[j, m] += slope
            sums[0, m] += 0.5 * slope * weight
            sums[1, m] += l1[m] * abs(weight)
    if ends:
        for m in range(wd.shape[0]):
            slope = wd[m] * bias_wd * weights[last, m]
            gradient[last, m] = gradient[last, m] + slope if use_bias else 0.0
            sums[0, m] += 0.5 * slope * weights[last, m]


@njit("void(f8[:, ::1], f8[:, ::1], f8[:, ::1], f8[::1], b1, f8[::1])", nogil=True, cache=True)
def slope_along(weights, gradient, trial, l1, ends, sums):
    """Add the objective's slope at the weights, times the way to the trial, to `sums` (M,)."""
    last = weights.shape[0] - 1 if ends else weights.shape[0]
    for j in range(last):
        for m in range(l1.shape[0]):
            weight = weights[j, m]
            sums[m] += _steepest(weight, gradient[j, m], l1[m]) * (trial[j, m] - weight)
    if ends:
        for m in range(l1.shape[0]):
            sums[m] += gradient[last, m] * (trial[last, m] - weights[last, m])


@njit("void(f8[:, ::1], f8[:, ::1], f8[:, ::1], f8[:, ::1], f4[:, ::1], f4[:, ::1], f8[:, ::1])", nogil=True, cache=True)
def pair(weights, trial, gradient, new, step, change, sums):
    """Write what moved and how the gradient changed; add their product and both squares to `sums` (3, M)."""
    for j in range(weights.shape[0]):
        for m in range(weights.shape[1]):
            step[j, m] = trial[j, m] - weights[j, m]
            change[j, m] = new[j, m] - gradient[j, m]
            moved, changed = float(step[j, m]), float(change[j, m])
            sums[0, m] += moved * changed
            sums[1, m] += moved * moved
            sums[2, m] += changed * changed


@njit("void(f8[:, ::1], f8[:, ::1], f8[::1], b1, f8[:, ::1])", nogil=True, cache=True)
def steepest(weights, gradient, l1, ends, out):
    """Write the steepest subgradient of the objective with its L1 part."""
    last = weights.shape[0] - 1 if ends else weights.shape[0]
    for j in range(last):
        for m in range(l1.shape[0]):
            out[j, m] = _steepest(weights[j, m], gradient[j, m], l1[m])
    if ends:
        for m in range(l1.shape[0]):
            out[last, m] = gradient[last, m]


@njit("void(f4[:, ::1], f8[:, ::1], f8[::1])", nogil=True, cache=True)
def dots(narrow, vector, sums):
    """Add the products of columns to `sums` (M,)."""
    for j in range(vector.shape[0]):
        for m in range(vector.shape[1]):
            sums[m] += float(narrow[j, m]) * vector[j, m]


@njit("void(f8[:, ::1], f8[::1], f4[:, ::1])", nogil=True, cache=True)
def add(vector, factors, narrow):
    """Add `narrow`, each column times its factor (M,), to `vector`."""
    for j in range(vector.shape[0]):
        for m in range(vector.shape[1]):
            vector[j, m] += factors[m] * float(narrow[j, m])


@njit("void(f8[:, ::1], f8[::1], f8[::1], f8[::1], f8, f8[::1], f8[::1], f8[::1])", nogil=True, cache=True)
def over_diagonal(vector, mean, diagonal, coupled, change, wd, scale, sums):
    """Divide a gradient by a diagonal curvature; the run's rows hold no bias.

    Args:
        vector: changed.
        mean: (J,) of the features, around which the curvature is taken.
        diagonal: (J,) second moments.
        coupled: (M,) the bias's gradient where it moves with the means; otherwise 0.
        change: second derivative of the loss.
        wd: (M,) L2 penalties.
        scale: (M,) of what is written.
        sums: (M,) means times what was written is added to it.
    """
    for j in range(vector.shape[0]):
        curved = change * diagonal[j]
        for m in range(vector.shape[1]):
            solved = scale[m] * (vector[j, m] - mean[j] * coupled[m]) / (curved + wd[m])
            vector[j, m] = solved
            sums[m] += mean[j] * solved


@njit("void(f8[:, ::1], f8[:, ::1], f8[:, ::1], f8[::1], b1, f8[:, ::1])", nogil=True, cache=True)
def turn_down(direction, weights, gradient, l1, ends, sums):
    """Turn a way up round, within the orthant that L1 leaves.

    Adds its product with the steepest way up to `sums[0]` (M,), and the square of that to `sums[1]`.
    """
    last = weights.shape[0] - 1 if ends else weights.shape[0]
    for j in range(last):
        for m in range(l1.shape[0]):
            up = _steepest(weights[j, m], gradient[j, m], l1[m])
            down = -direction[j, m]
            if l1[m] > 0.0 and down * up >= 0.0:
                down = 0.0
            direction[j, m] = down
            sums[0, m] += down * up
            sums[1, m] += up * up
    if ends:
        for m in range(l1.shape[0]):
            up, down = gradient[last, m], -direction[last, m]
            direction[last, m] = down
            sums[0, m] += down * up
            sums[1, m] += up * up


@njit("void(f8[:, ::1], f8[:, ::1], f8[:, ::1], f8[::1], f8[::1], b1, f8[:, ::1])", nogil=True, cache=True)
def go(weights, gradient, direction, length, l1, ends, trial):
    """Write the point `length` (M,) along the direction; weights under L1 stop at zero."""
    last = weights.shape[0] - 1 if ends else weights.shape[0]
    for j in range(last):
        for m in range(l1.shape[0]):
            weight = weights[j, m]
            to = weight + length[m] * direction[j, m]
            side = weight if weight != 0.0 else -_steepest(weight, gradient[j, m], l1[m])
            trial[j, m] = 0.0 if l1[m] > 0.0 and to * side <= 0.0 else to
    if ends:
        for m in range(l1.shape[0]):
            trial[last, m] = weights[last, m] + length[m] * direction[last, m]


@njit("void(b1[::1], f8[:, ::1], f8[:, ::1])", nogil=True, cache=True)
def take(where, source, target):
    """Copy the columns `where` (M,) says so."""
    for j in range(source.shape[0]):
        for m in range(source.shape[1]):
            target[j, m] = source[j, m] if where[m] else target[j, m]
