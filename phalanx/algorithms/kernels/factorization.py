"""Loops of factorization machines over sparse rows: scores, gradients, updates, each in O(nnz · k).

The pairs' sum of a row is ½ Σ_f ((Σ_j v_jf x_j)² − Σ_j v_jf² x_j²), after Rendle, "Factorization machines" (2010). Sums over
rows add numbers on a common grid (`phalanx.algorithms.fixed_point`), which is exact in any order; so no fast-math flag that
reorders. The kernels have explicit signatures: they are compiled, or loaded from numba's cache, on import.

Legend of shapes: N rows, T columns that occur in training, U of them in a batch, k factors. A table is (T + 1, 1 + k) float32:
a row is a column's linear weight, then its factors; the last row holds the bias.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import math

from numba import njit


@njit("void(i8[::1], i8[::1], f4[::1], f4[:, ::1], f8[::1], f8[:, ::1])", nogil=True, cache=True)
def scores(indptr, indices, values, table, out, sums):
    """Write raw scores to `out` (N,) and Σ_j v_jf x_j to `sums` (N, k); entries at column -1 count as zero."""
    last = table.shape[0] - 1
    k = sums.shape[1]
    for i in range(out.shape[0]):
        row = sums[i]
        row[:] = 0.0
        linear = float(table[last, 0])
        squares = 0.0
        for place in range(indptr[i], indptr[i + 1]):
            j = indices[place]
            if j < 0:
                continue
            value = float(values[place])
            weights = table[j]
            linear += weights[0] * value
            for f in range(k):
                product = weights[f + 1] * value
                row[f] += product
                squares += product * product
        pairs = 0.0
        for f in range(k):
            pairs += row[f] * row[f]
        out[i] = linear + 0.5 * (pairs - squares)


@njit("f8(i8[::1], i8[::1], f4[::1], f4[:, ::1], f8[::1], f8[:, ::1])", nogil=True, cache=True)
def largest_gradient(indptr, indices, values, table, slopes, sums):
    """Return a bound of the magnitude of what any entry adds to any gradient."""
    k = sums.shape[1]
    found = 0.0
    for i in range(slopes.shape[0]):
        slope = abs(slopes[i])
        found = max(found, slope)
        top = 0.0
        for f in range(k):
            top = max(top, abs(sums[i, f]))
        for place in range(indptr[i], indptr[i + 1]):
            value = abs(float(values[place]))
            own = 0.0
            for f in range(k):
                own = max(own, abs(float(table[indices[place], f + 1])))
            found = max(found, slope * value * max(1.0, top + own * value))
    return found


@njit("i8(i8[::1], i8[::1], i8[::1], i8[::1])", nogil=True, cache=True)
def number_columns(indices, marks, places, keys):
    """Number the distinct columns of a batch: write every entry's number to `places`, the columns to `keys`; return how many.

    `marks` (T,) holds -1 everywhere, before and after.
    """
    count = 0
    for place in range(indices.shape[0]):
        j = indices[place]
        if marks[j] < 0:
            marks[j] = count
            keys[count] = j
            count += 1
        places[place] = marks[j]
    for number in range(count):
        marks[keys[number]] = -1
    return count


@njit("void(i8[::1], i8[::1], i8[::1], f4[::1], f4[:, ::1], f8[::1], f8[:, ::1], f8, f8[:, ::1])", nogil=True, cache=True)
def gradient(indptr, indices, places, values, table, slopes, sums, anchor, out):
    """Add the gradients of columns to their rows of `out` (U, 1 + k), every addend rounded to the anchor's grid."""
    k = sums.shape[1]
    for i in range(slopes.shape[0]):
        for place in range(indptr[i], indptr[i + 1]):
            value = float(values[place])
            step = slopes[i] * value
            weights = table[indices[place]]
            row = out[places[place]]
            row[0] += (step + anchor) - anchor
            for f in range(k):
                row[f + 1] += (step * (sums[i, f] - weights[f + 1] * value) + anchor) - anchor


@njit(
    "void(i8[::1], f8[:, ::1], f4[:, ::1], f4[:, ::1], f4[:, ::1], i8[:, ::1], i8, i8, f8[::1], f8[::1], f8, f8)",
    nogil=True,
    cache=True,
)
def update(keys, gradients, table, first, second, seen, step, method, rates, decays, clip, eps):
    """Move the rows `keys` (U,) of a table along mean gradients (U, 1 + k).

    Columns that a batch does not hold stay as they are; the penalty of the steps they missed is made up for when they come
    again. So a step costs what its batch holds, however wide the rows are.

    Args:
        keys: rows of the table.
        gradients: theirs.
        table: to be changed.
        first: adam's mean, ftrl's z; as the table.
        second: adam's mean of squares, adagrad's and ftrl's sum of squares; as the table.
        seen: (T + 1, 2): the step a row was last moved at, how often it was moved.
        step: this one, from 1.
        method: 0 adam, 1 sgd, 2 adagrad, 3 ftrl.
        rates: (3,) of bias, linear weights, factors; 0 leaves a part as it is.
        decays: (3,) likewise.
        clip: largest magnitude of a gradient.
        eps: beside the denominators.
    """
    last = table.shape[0] - 1
    for number in range(keys.shape[0]):
        j = keys[number]
        missed = float(step - seen[j, 0])
        seen[j, 0] = step
        seen[j, 1] += 1
        mean_share = 1.0 - math.pow(0.9, float(seen[j, 1]))
        square_share = 1.0 - math.pow(0.999, float(seen[j, 1]))
        for f in range(1 if j == last else table.shape[1]):
            part = 0 if j == last else (1 if f == 0 else 2)
            rate = rates[part]
            if rate == 0.0:
                continue
            weight = float(table[j, f])
            g = min(max(gradients[number, f], -clip), clip)
            decay = decays[part] * missed
            if method == 3:
                squares = float(second[j, f]) + g * g
                shift = (math.sqrt(squares) - math.sqrt(float(second[j, f]))) / rate
                z = float(first[j, f]) + g - shift * weight
                first[j, f] = z
                second[j, f] = squares
                table[j, f] = -z / ((1.0 + math.sqrt(squares)) / rate + decays[part])
                continue
            if method == 1:
                table[j, f] = weight - rate * (g + min(decay, 1.0 / rate) * weight)
                continue
            g += decay * weight
            if method == 2:
                squares = float(second[j, f]) + g * g
                second[j, f] = squares
                table[j, f] = weight - rate * g / (math.sqrt(squares) + eps)
                continue
            mean = 0.9 * float(first[j, f]) + 0.1 * g
            squares = 0.999 * float(second[j, f]) + 0.001 * g * g
            first[j, f] = mean
            second[j, f] = squares
            table[j, f] = weight - rate * (mean / mean_share) / (math.sqrt(squares / square_share) + eps)


@njit("void(i8[::1], i8[::1], i8[::1])", nogil=True, cache=True)
def find_columns(columns, indices, out):
    """Write the place of every index among the ascending `columns` (T,) to `out`, -1 for one that is not there."""
    for place in range(indices.shape[0]):
        wanted = indices[place]
        low, high = 0, columns.shape[0]
        while low < high:
            middle = (low + high) >> 1
            if columns[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        out[place] = low if low < columns.shape[0] and columns[low] == wanted else -1
