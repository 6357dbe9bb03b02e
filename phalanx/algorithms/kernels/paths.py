"""Ancestral sampling of one series: all its paths advance together, one step at a time.

What every path knows of a step (the calendar, lags that reach into the past) is given as one product for all of them; what is
left is a product of the lags that reach into the forecast and of the states. Random numbers are numba's own, of the thread, set
anew for every series: draws follow from the seed alone.

Legend of shapes: S paths, T steps, L lags below T, H cells, P parameters of the distribution, N layers.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit

from .lstm import advance

GAUSSIAN, STUDENT_T, BETA, NEGATIVE_BINOMIAL, DETERMINISTIC = range(5)
_TINY = 1e-6
_MOST_COUNT = 1e15  # a rate above it would leave the range of counts


@njit("f8(f8)", nogil=True, cache=True)
def softplus(x):
    """Return log(1 + e^x)."""
    return max(x, 0.0) + np.log1p(np.exp(-abs(x)))


@njit("void(u4)", nogil=True, cache=True)
def seed(number):
    """Set this thread's random numbers."""
    np.random.seed(number)


@njit("f8(i8, f4[::1], f8)", nogil=True, cache=True)
def draw(likelihood, p, scale):
    """Return a value of the distribution with parameters `p` (P,) as the network gives them, not scaled."""
    if likelihood == DETERMINISTIC:
        return p[0] * scale
    if likelihood == BETA:
        one, two = np.random.standard_gamma(softplus(p[0]) + 1e-2), np.random.standard_gamma(softplus(p[1]) + 1e-2)
        return min(max(one / max(one + two, 1e-300), 1e-6), 1 - 1e-6)
    if likelihood == NEGATIVE_BINOMIAL:
        mean = (softplus(p[0]) + _TINY) * scale
        shape = softplus(p[1]) / np.sqrt(scale) + 1e-4
        return float(np.random.poisson(min(np.random.standard_gamma(1 / shape) * shape * mean, _MOST_COUNT)))
    spread = softplus(p[1]) + _TINY
    if likelihood == GAUSSIAN:
        return (p[0] + spread * np.random.standard_normal()) * scale
    return (p[0] + spread * np.random.standard_t(2 + softplus(p[2]))) * scale


@njit(
    "void(i8, u4, f8, f4[:, ::1], f4[:, ::1], f4[:, ::1], i8[::1], f4[:, ::1], f4[:, :, ::1], f4[:, :, ::1], f4[:, ::1], "
    "f4[:, ::1], f4[:, ::1], f4[:, ::1])",
    nogil=True,
    cache=True,
)
def sample(likelihood, number, scale, states, cells, known, lags, first, others, biases, head, highway, offset, out):
    """Write the paths of one series.

    Args:
        likelihood: which distribution.
        number: seed.
        scale: of the series.
        states: (N, H) of each layer before the first step.
        cells: (N, H) of each layer before the first step.
        known: (T, 4 H) products of what every path knows of a step, and the bias.
        lags: (L,) below T.
        first: (L + H, 4 H) weights of these lags and of the states, of the first layer.
        others: (N - 1, 2 H, 4 H) weights of inputs and states of the other layers.
        biases: (N - 1, 1, 4 H) of the other layers.
        head: (H, P).
        highway: (L, P) weights of these lags.
        offset: (T, P) of each step: the bias, and what the other lags come to.
        out: (S, T) written, not scaled.
    """
    np.random.seed(number)
    paths, steps = out.shape
    layers, count = states.shape
    reach = lags.shape[0]
    past = np.empty((steps, paths), dtype=np.float32)  # scaled values
    bottom = np.zeros((paths, reach + count), dtype=np.float32)
    bottom[:, reach:] = states[0]
    upper = np.zeros((layers - 1, paths, 2 * count), dtype=np.float32)
    memory = np.empty((layers, paths, count), dtype=np.float32)
    for layer in range(layers):
        memory[layer] = cells[layer]
        if layer > 0:
            upper[layer - 1, :, count:] = states[layer]
    gates = np.empty((paths, 4 * count), dtype=np.float32)
    squashed = np.empty((paths, count), dtype=np.float32)
    hidden = np.empty((paths, count), dtype=np.float32)
    parameters = np.empty((paths, head.shape[1]), dtype=np.float32)
    for t in range(steps):
        for k in range(reach):
            if lags[k] <= t:
                for p in range(paths):
                    bottom[p, k] = past[t - lags[k], p]
        for layer in range(layers):
            if layer == 0:
                np.dot(bottom, first, gates)
                advance(gates, known[t : t + 1], memory[0], memory[0], squashed)
            else:
                np.dot(upper[layer - 1], others[layer - 1], gates)
                advance(gates, biases[layer - 1], memory[layer], memory[layer], squashed)
            for p in range(paths):
                for j in range(count):
                    hidden[p, j] = gates[p, 3 * count + j] * squashed[p, j]
            if layer == 0:
                bottom[:, reach:] = hidden
            else:
                upper[layer - 1, :, count:] = hidden
            if layer + 1 < layers:
                upper[layer, :, :count] = hidden
        np.dot(hidden, head, parameters)
        for p in range(paths):
            for k in range(parameters.shape[1]):
                total = parameters[p, k] + offset[t, k]
                for lag in range(reach):
                    total += bottom[p, lag] * highway[lag, k]
                parameters[p, k] = total
            value = draw(likelihood, parameters[p], scale)
            out[p, t] = value
            past[t, p] = value / scale


@njit("void(f4[:, ::1], f8[::1], f4[::1], f4[:, ::1])", nogil=True, cache=True)
def summarise(paths, quantiles, mean, of):
    """Write means (T,) and quantiles (Q, T), on lines between neighbours, of `paths` (S, T)."""
    count, steps = paths.shape
    for t in range(steps):
        values = np.sort(paths[:, t])
        total = 0.0
        for value in values:
            total += value
        mean[t] = total / count
        for k in range(quantiles.shape[0]):
            place = quantiles[k] * (count - 1)
            low = min(int(place), count - 1)
            high = min(low + 1, count - 1)
            below, above = np.float64(values[low]), np.float64(values[high])
            of[k, t] = below + (above - below) * (place - low)
