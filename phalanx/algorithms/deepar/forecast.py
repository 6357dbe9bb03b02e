"""Forecasts by ancestral sampling: the past of a series is read once, then all its paths advance together.

Every series is computed for itself, in float32 and in arrays whose shapes follow from the configuration alone: an answer does
not depend on what else was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
from torch import Tensor

from ...contracts import Array
from ..kernels import lstm as lstm_loops
from ..kernels import paths as loops
from .calendar import Frequency
from .hyperparameters import DeepARHyperparameters
from .lstm import Runner
from .network import Network
from .series import Series
from .windows import Prepared, Windows

CODES = {
    "gaussian": loops.GAUSSIAN,
    "student-T": loops.STUDENT_T,
    "beta": loops.BETA,
    "negative-binomial": loops.NEGATIVE_BINOMIAL,
    "deterministic-L1": loops.DETERMINISTIC,
}
_BLOCK = 128  # paths that advance together: what they work on stays in the cache
_ALL = np.float32(1)


@final
class Forecaster:
    """Draws paths, each series with random numbers of its own.

    Args:
        network: trained.
        wanted: hyperparameters.
    """

    def __init__(self, network: Network, wanted: DeepARHyperparameters) -> None:
        self._network, self._wanted = network, wanted
        self._inputs = network.inputs
        layers = [[_numbers(weight) for weight in layer] for layer in network.weights()]
        (of_inputs, of_states, one, other), *above = layers
        self._of_inputs = np.ascontiguousarray(of_inputs.T)  # (I + S, 4 H)
        self._of_states = np.ascontiguousarray(of_states.T)
        self._bias = one + other
        cells = network.head.in_features
        self._others = np.empty((len(above), 2 * cells, 4 * cells), dtype=np.float32)
        self._biases = np.empty((len(above), 1, 4 * cells), dtype=np.float32)
        for number, (w, v, b, c) in enumerate(above):
            self._others[number] = np.concatenate([w, v], axis=1).T
            self._biases[number] = b + c
        self._head = np.ascontiguousarray(_numbers(network.head.weight).T)
        self._offset = _numbers(network.head.bias)
        self._highway = np.ascontiguousarray(_numbers(network.highway.weight).T)  # (L, P)

    def samples(
        self, series: Sequence[Series], begin: Sequence[int], paths: int, seeds: Sequence[int], runner: Runner
    ) -> Array:
        """Return paths (N, paths, prediction_length) float32 from a value of each series on.

        Args:
            series: N of them.
            begin: (N,) where each forecast begins.
            paths: of each.
            seeds: (N,) of each one's random numbers.
            runner: whose threads take series.
        """
        wanted = self._wanted
        frequency = Frequency.parse(wanted.time_freq)
        prepared = Prepared(series, frequency, wanted.context_length, wanted.prediction_length, since=begin)
        windows = prepared.windows(np.arange(len(begin)), np.array(begin, dtype=np.int64))
        static = _numbers(self._network.embedded(*windows.still()))
        found = np.empty((len(begin), paths, self._wanted.prediction_length), dtype=np.float32)

        def work(number: int) -> None:
            self._one(prepared, windows, static[number], number, seeds[number], found[number])

        runner.each(work, len(begin))
        return found

    def _one(self, prepared: Prepared, windows: Windows, static: Array, number: int, seed: int, found: Array) -> None:
        context, lags = prepared.context, prepared.lags
        base = (static @ self._of_inputs[self._inputs :] + self._bias)[None]
        inputs = np.ascontiguousarray(windows.inputs[:, number])
        states, cells = self._read(inputs[:context], base)
        ahead = inputs[context:]
        steps = np.arange(len(ahead))
        ahead[:, : len(lags)][lags <= steps[:, None]] = 0  # the series may hold what is to be forecast
        near = lags[lags < len(ahead)]
        known = ahead @ self._of_inputs[: self._inputs] + base
        offset = ahead[:, : len(lags)] @ self._highway + self._offset
        first = np.concatenate([self._of_inputs[: len(near)], self._of_states])
        scale, code = float(windows.scale[number]), CODES[self._wanted.likelihood]
        for block, begin in enumerate(range(0, len(found), _BLOCK)):
            own = (seed + block * 0x9E3779B1) & 0xFFFFFFFF
            loops.sample(
                code, np.uint32(own), scale, states, cells, known, near, first, self._others, self._biases, self._head,
                self._highway[: len(near)], offset, found[begin : begin + _BLOCK],
            )  # fmt: skip

    def _read(self, inputs: Array, base: Array) -> tuple[Array, Array]:
        """Return states and cells (N, H) of all layers after the context (T, I)."""
        steps, count = len(inputs), self._head.shape[0]
        states = np.empty((1 + len(self._others), count), dtype=np.float32)
        cells = np.empty_like(states)
        first = np.concatenate([self._of_inputs[: self._inputs], self._of_states])
        for number in range(len(states)):
            weights, bias = (self._others[number - 1], self._biases[number - 1]) if number else (first, base)
            whole = np.zeros((steps + 1, 1, len(weights)), dtype=np.float32)
            whole[:steps, 0, : inputs.shape[1]] = inputs
            gates, squashed = np.empty((steps, 1, 4 * count), np.float32), np.empty((steps, 1, count), np.float32)
            memory, out = np.zeros((steps + 1, 1, count), np.float32), np.empty((steps + 1, 1, count), np.float32)
            lstm_loops.forward(whole, weights, bias, gates, memory, squashed, out, np.zeros(1, np.uint32), np.uint32(0), _ALL)
            states[number], cells[number] = whole[steps, 0, -count:], memory[steps, 0]
            inputs = out[:steps, 0]
        return states, cells


def _numbers(tensor: Tensor) -> Array:
    found: Array = tensor.detach().cpu().float().numpy()
    return found


def summarised(paths: Array, quantiles: Sequence[float], runner: Runner) -> tuple[Array, Array]:
    """Return the means (N, T) and quantiles (N, Q, T) of paths (N, S, T), interpolated as numpy does."""
    count, _, steps = paths.shape
    mean = np.empty((count, steps), dtype=np.float32)
    of = np.empty((count, len(quantiles), steps), dtype=np.float32)
    wanted = np.array(quantiles, dtype=np.float64)

    def work(number: int) -> None:
        loops.summarise(paths[number], wanted, mean[number], of[number])

    runner.each(work, count)
    return mean, of
