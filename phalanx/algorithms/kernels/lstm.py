"""Loops of an LSTM layer (Hochreiter and Schmidhuber, 1997; gates as Gers et al., 2000) over all steps of some windows.

Input and recurrence are one matrix product a step, of `[input | state]` with both weights; gates, cells and dropout follow in
loops that the compiler turns into vectors. The slopes of the weights are one product over all steps. What dropout leaves out is
a hash of window, step and cell, so nothing of it has to be stored.

The products go to BLAS: its threads are to be limited to one where threads compute different windows at once
(`phalanx.algorithms.kernels.blas`). The kernels have explicit signatures: compiled, or loaded from numba's cache, on import.

Legend of shapes: T steps, B windows, I inputs, H cells, K = I + H.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit

_FAST = {"contract", "nsz"}
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_C2, _C3, _C4, _C5, _C6 = (np.float32(1 / c) for c in (2, 6, 24, 120, 720))
_HALF, _ONE, _TWO, _ZERO, _MOST = (np.float32(c) for c in (0.5, 1, 2, 0, 80))
_EXPONENT, _MANTISSA = np.int32(127), np.int32(23)
_A, _B, _C = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77), np.uint32(0xC2B2AE3D)
_S15, _S13, _S16 = np.uint32(15), np.uint32(13), np.uint32(16)


@njit("f4(f4)", inline="always", nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _exp(x):
    """Return e to the x, from -80 to 80, to two units in the last place: 2^n times a polynomial of the rest."""
    x = _MOST if x > _MOST else x
    x = -_MOST if x < -_MOST else x
    n = np.floor(x * _LOG2_E + _HALF)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _ONE + r * (_ONE + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
    return p * np.int32((np.int32(n) + _EXPONENT) << _MANTISSA).view(np.float32)


@njit("f4(u4, i8, u4, f4)", inline="always", nogil=True, cache=True)
def _factor(key, place, threshold, kept):
    """Return what dropout multiplies number `place` of a window with: 0, or `kept`."""
    x = np.uint32(key + np.uint32(place) * _A)
    x = np.uint32((x ^ (x >> _S15)) * _B)
    x = np.uint32((x ^ (x >> _S13)) * _C)
    x = np.uint32(x ^ (x >> _S16))
    return kept if x >= threshold else _ZERO


@njit(
    "void(f4[:, ::1], f4[:, ::1], f4[:, ::1], f4[:, ::1], f4[:, ::1])",
    nogil=True,
    cache=True,
    fastmath=_FAST,
    error_model="numpy",
)
def advance(gates, bias, before, after, squashed):
    """Turn the products of one step into gates, cells and their tanh.

    Args:
        gates: (B, 4 H) products of inputs and states with the weights; after that the gates, which take their place.
        bias: (B, 4 H) of each window, or (1, 4 H) of all.
        before: (B, H) cells.
        after: (B, H) written.
        squashed: (B, H) written.
    """
    windows, width = gates.shape
    count = width // 4
    for b in range(windows):
        row, base = gates[b], bias[b if bias.shape[0] > 1 else 0]
        raw, middle = row[2 * count : 3 * count], base[2 * count : 3 * count]
        for j in range(count):
            raw[j] += raw[j] + middle[j]  # tanh(x) = 2 sigmoid(2 x) - 1, so one loop serves all gates
        for k in range(width):
            row[k] = _ONE / (_ONE + _exp(-(row[k] + base[k])))
        i, f, old, new = row[:count], row[count : 2 * count], before[b], after[b]
        for j in range(count):
            raw[j] = _TWO * raw[j] - _ONE
            new[j] = f[j] * old[j] + i[j] * raw[j]
    cells, tanhs = after.reshape(windows * count), squashed.reshape(windows * count)
    for k in range(windows * count):
        tanhs[k] = _TWO / (_ONE + _exp(-_TWO * cells[k])) - _ONE


@njit(
    "void(f4[:, :, ::1], f4[:, ::1], f4[:, ::1], f4[:, :, ::1], f4[:, :, ::1], f4[:, :, ::1], f4[:, :, ::1], u4[::1], u4, f4)",
    nogil=True,
    cache=True,
    fastmath=_FAST,
    error_model="numpy",
)
def forward(whole, weights, bias, gates, cells, squashed, out, keys, threshold, kept):
    """Advance a layer over all steps; what is written is what `backward` reads.

    Args:
        whole: (T + 1, B, K): inputs of step t in `[t, :, :I]`; states before step t in `[t, :, I:]`, of which `[0]` is given.
        weights: (K, 4 H) columns of input, forget, cell and output gates.
        bias: (B, 4 H) of each window, or (1, 4 H) of all.
        gates: (T, B, 4 H) written, after their activations.
        cells: (T + 1, B, H) `[0]` is given.
        squashed: (T, B, H) written: tanh of the cells after each step.
        out: (T + 1, B, at least H) outputs after dropout are written to `[t, :, :H]`.
        keys: (B,) of dropout.
        threshold: share of 2^32 that is left out; 0: nothing.
        kept: what outputs that are kept are multiplied with.
    """
    steps, windows, width = gates.shape
    count = width // 4
    inputs = whole.shape[2] - count
    for t in range(steps):
        np.dot(whole[t], weights, gates[t])
        advance(gates[t], bias, cells[t], cells[t + 1], squashed[t])
        for b in range(windows):
            o, s, state, given = gates[t, b, 3 * count :], squashed[t, b], whole[t + 1, b, inputs:], out[t, b]
            for j in range(count):
                state[j] = o[j] * s[j]
                given[j] = o[j] * s[j]
            if threshold > 0:
                for j in range(count):
                    given[j] *= _factor(keys[b], t * count + j, threshold, kept)


@njit(
    "void(f4[:, :, ::1], f4[:, ::1], f4[:, :, ::1], f4[:, :, ::1], f4[:, :, ::1], f4[:, :, ::1], f4[:, :, ::1], "
    "f4[:, ::1], f4[:, ::1], u4[::1], u4, f4)",
    nogil=True,
    cache=True,
    fastmath=_FAST,
    error_model="numpy",
)
def backward(whole, weights, gates, cells, squashed, above, below, of_weights, of_bias, keys, threshold, kept):
    """Take the slopes of the loss by a layer's outputs back to its weights, biases and inputs.

    Args:
        whole: (T + 1, B, K) as `forward` left it.
        weights: (4 H, R) transposed; its last H columns are those of the states, what is before them of inputs whose slopes
            are wanted: R = H or K.
        gates: (T, B, 4 H) as `forward` left it; slopes by what went into the activations take their place.
        cells: (T + 1, B, H) as `forward` left it.
        squashed: (T, B, H) as `forward` left it.
        above: (T, B, at least H) slopes by the outputs after dropout, in the first H columns.
        below: (T, B, R) written: slopes by inputs, and by states before each step.
        of_weights: (K, 4 H) written.
        of_bias: (B, 4 H) written.
        keys: of dropout, as the next two.
        threshold: as in `forward`.
        kept: as in `forward`.
    """
    steps, windows, width = gates.shape
    count = width // 4
    reach = weights.shape[1] - count
    carried = np.zeros((windows, count), dtype=np.float32)
    slope = np.empty(count, dtype=np.float32)
    of_bias[:] = _ZERO
    for t in range(steps - 1, -1, -1):
        for b in range(windows):
            row, before, tanhs, memory, total = gates[t, b], cells[t, b], squashed[t, b], carried[b], of_bias[b]
            wanted = above[t, b]
            if threshold > 0:
                for j in range(count):
                    slope[j] = wanted[j] * _factor(keys[b], t * count + j, threshold, kept)
            else:
                for j in range(count):
                    slope[j] = wanted[j]
            if t + 1 < steps:
                later = below[t + 1, b]
                for j in range(count):
                    slope[j] += later[reach + j]
            i, f, g, o = row[:count], row[count : 2 * count], row[2 * count : 3 * count], row[3 * count :]
            for j in range(count):
                s, h = tanhs[j], slope[j]
                c = memory[j] + h * o[j] * (_ONE - s * s)
                memory[j] = c * f[j]
                slope[j] = h * s * o[j] * (_ONE - o[j])
                kept_i = i[j]
                i[j] = c * g[j] * kept_i * (_ONE - kept_i)
                f[j] = c * before[j] * f[j] * (_ONE - f[j])
                g[j] = c * kept_i * (_ONE - g[j] * g[j])
            for j in range(count):
                o[j] = slope[j]
            for j in range(width):
                total[j] += row[j]
        np.dot(gates[t], weights, below[t])
    rows = steps * windows
    np.dot(whole[:steps].reshape(rows, whole.shape[2]).T, gates.reshape(rows, width), of_weights)
