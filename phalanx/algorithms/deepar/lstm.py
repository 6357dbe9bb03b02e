"""DeepAR's LSTM layers on the CPU: one call for all steps and layers, with its gradient, spread over threads by windows.

Windows are computed in blocks whose number depends on the batch alone, and sums over blocks are taken in their order: results
are the same to the bit on any number of threads.

Legend of shapes: T steps, B windows, I inputs, H cells, K = I + H.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

from ...contracts import Array
from ..kernels import lstm as loops
from ..kernels.blas import single_threaded_blas

_BLOCK = 16  # windows that are computed at once


@final
class Runner:
    """Threads for blocks of windows, and the memory that blocks work in; a context manager that owns them.

    Within, BLAS and torch take one thread: these threads do the spreading, and what is left to torch is too small to share.

    Args:
        threads: that blocks are spread over.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._resources = ExitStack()
        self._pool: ThreadPoolExecutor | None = None
        self._spare: dict[tuple[int, ...], list[list[Layer]]] = {}

    def __enter__(self) -> Self:
        self._resources.enter_context(single_threaded_blas())
        self._resources.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        if self._threads > 1:
            self._pool = self._resources.enter_context(ThreadPoolExecutor(self._threads - 1, "phalanx-windows"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._resources.close()
        self._pool = None

    def each(self, work: Callable[[int], None], count: int) -> None:
        """Call `work` with 0 … count - 1, spread over the threads, of which the caller is one."""
        if self._pool is None or count < 2:
            for number in range(count):
                work(number)
            return
        left = iter(range(count))  # threads take numbers one by one; the interpreter's lock keeps them apart

        def some() -> None:
            for number in left:
                work(number)

        others = [self._pool.submit(some) for _ in range(min(self._threads, count) - 1)]
        try:
            some()
        finally:
            for other in others:
                other.result()

    def memory(self, sizes: tuple[int, int, int, int, int]) -> list[Layer]:
        """Return room for a block: T steps, B windows, I inputs, H cells, layers; give it back with `spare`."""
        spare = self._spare.get(sizes)
        return spare.pop() if spare else _layers(*sizes)

    def spare(self, layers: list[Layer], sizes: tuple[int, int, int, int, int]) -> None:
        """Take room back."""
        self._spare.setdefault(sizes, []).append(layers)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer computes of one block of B windows, kept for the way back."""

    whole: Array  # (T + 1, B, K) inputs and states
    gates: Array  # (T, B, 4 H)
    cells: Array  # (T + 1, B, H)
    squashed: Array  # (T, B, H)
    below: Array  # (T, B, H) of the first layer, which learns nothing from its inputs; (T, B, K) of others
    of_weights: Array  # (K, 4 H)
    of_bias: Array  # (B, 4 H)


def _layers(steps: int, windows: int, inputs: int, cells: int, count: int) -> list[Layer]:
    found = []
    for number in range(count):
        width = (cells if number else inputs) + cells
        sizes = (
            (steps + 1, windows, width),
            (steps, windows, 4 * cells),
            (steps + 1, windows, cells),
            (steps, windows, cells),
            (steps, windows, width if number else cells),
            (width, 4 * cells),
            (windows, 4 * cells),
        )
        found.append(Layer(*(np.zeros(size, dtype=np.float32) for size in sizes)))
    return found


@dataclass(frozen=True, slots=True)
class Dropout:
    """What of a layer's outputs is left out in training."""

    rate: float
    keys: Array  # (B,) uint32, one of each window

    def of_layer(self, layer: int, windows: slice) -> tuple[Array, np.uint32, np.float32]:
        """Return keys, threshold and factor for the kernels."""
        keys = self.keys[windows] ^ np.uint32((layer * 0x9E3779B9 + 0x7F4A7C15) & 0xFFFFFFFF)
        return keys, np.uint32(int(self.rate * 2**32)), np.float32(1 / (1 - self.rate))


def layers_of(runner: Runner, dropout: Dropout, inputs: Tensor, bias: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the outputs (T, B, H) of stacked layers, after dropout.

    Args:
        runner: with threads.
        dropout: of every layer's outputs.
        inputs: (T, B, I) float32 that nothing is to be learned for.
        bias: (B, 4 H) of the first layer, of each window.
        weights: of the first layer those of inputs (4 H, I) and states (4 H, H); of each other layer also its bias (4 H,).
    """
    found: Tensor = _Stacked.apply(runner, dropout, inputs, bias, *weights)  # type: ignore[no-untyped-call]
    return found


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, runner: Runner, dropout: Dropout, inputs: Tensor, bias: Tensor, *weights: Tensor) -> Tensor:
        x, base = inputs.detach().numpy(), bias.detach().numpy()
        given = [weight.detach().numpy() for weight in weights]
        steps, windows, width = x.shape
        cells = given[1].shape[1]
        pairs = [(given[0], given[1]), *zip(given[2::3], given[3::3], strict=True)]
        joined = [np.ascontiguousarray(np.concatenate(pair, axis=1).T) for pair in pairs]
        blocks = _blocks(windows)
        sizes = [(steps, block.stop - block.start, width, cells, len(pairs)) for block in blocks]
        rooms = [runner.memory(size) for size in sizes]
        found = np.empty((steps + 1, windows, cells), dtype=np.float32)

        def work(number: int) -> None:
            block, room = blocks[number], rooms[number]
            room[0].whole[:steps, :, :width] = x[:, block]
            out = found if len(blocks) == 1 else np.empty((steps + 1, block.stop - block.start, cells), dtype=np.float32)
            for k, layer in enumerate(room):
                biases = given[1 + 3 * k][None] if k else base[block]
                after = room[k + 1].whole if k + 1 < len(room) else out
                keys, threshold, kept = dropout.of_layer(k, block)
                loops.forward(
                    layer.whole, joined[k], np.ascontiguousarray(biases), layer.gates, layer.cells, layer.squashed, after,
                    keys, threshold, kept,
                )  # fmt: skip
            if out is not found:
                found[:, block] = out

        runner.each(work, len(blocks))
        ctx.kept = runner, dropout, pairs, blocks, rooms, sizes
        return torch.from_numpy(found[:steps])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        runner, dropout, pairs, blocks, rooms, sizes = ctx.kept
        above = slopes[0].numpy()
        joined = [np.ascontiguousarray(pairs[0][1]), *(np.ascontiguousarray(np.concatenate(p, axis=1)) for p in pairs[1:])]

        def work(number: int) -> None:
            block, room = blocks[number], rooms[number]
            slope = np.ascontiguousarray(above[:, block])
            for k in range(len(room) - 1, -1, -1):
                layer = room[k]
                keys, threshold, kept = dropout.of_layer(k, block)
                loops.backward(
                    layer.whole, joined[k], layer.gates, layer.cells, layer.squashed, slope, layer.below,
                    layer.of_weights, layer.of_bias, keys, threshold, kept,
                )  # fmt: skip
                slope = layer.below

        runner.each(work, len(blocks))
        found: list[Tensor | None] = []
        for k in range(len(pairs)):
            of_weights = _sum([room[k].of_weights for room in rooms]).T
            inputs = pairs[k][0].shape[1]
            found += [torch.from_numpy(of_weights[:, :inputs].copy()), torch.from_numpy(of_weights[:, inputs:].copy())]
            if k:
                found.append(torch.from_numpy(_sum([room[k].of_bias.sum(axis=0) for room in rooms])))
        bias = torch.from_numpy(np.concatenate([room[0].of_bias for room in rooms]))
        for room, size in zip(rooms, sizes, strict=True):
            runner.spare(room, size)
        return None, None, None, bias, *found


def _blocks(windows: int) -> list[slice]:
    return [slice(first, min(first + _BLOCK, windows)) for first in range(0, windows, _BLOCK)]


def _sum(parts: list[Array]) -> Array:
    found = parts[0].copy()
    for part in parts[1:]:
        found += part
    return found
