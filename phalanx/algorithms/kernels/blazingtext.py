"""Learning word vectors: skip-gram, skip-gram with negatives shared by a window, CBOW, all by negative sampling.

Shared negatives and small matrix products: Ji et al., "Parallelizing Word2Vec in Shared and Distributed Memory", 2016. Threads
change the same matrices without locks, as Niu et al., "Hogwild!", 2011.

Legend: V words, S floats of a row of a matrix (`stride`: the dimension rounded up, the rest stays zero), K negatives. The
outputs of a window (a word and its negatives) are handled six at a time, so that sums stay in registers.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, operator, arg-type, call-overload"

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

GROUP = 6
SENTENCE = 1024  # most words of a line that a window may span at once
_SIGMOID_SIZE, _SIGMOID_MAX = 1024, 8.0
_SIGMOID = (1 / (1 + np.exp(-(np.arange(_SIGMOID_SIZE + 1) * 2 * _SIGMOID_MAX / _SIGMOID_SIZE - _SIGMOID_MAX)))).astype(
    np.float32
)
_LOSS_EVERY = 64  # windows: the loss is a sample's
_TRAIN = "f8[::1](i4[::1], f4[:, ::1], f4[:, ::1], u4[::1], u4[:, ::1], i8, i8, i8, f4, f8, f8, u8)"
_HIDDEN = "f8[::1](i4[::1], f4[:, ::1], f4[:, ::1], u4[::1], u4[:, ::1], i8, i8, b1, f8, f8, u8, i8[::1], i4[::1])"


@intrinsic
def _prefetch(typing_context, matrix, row):
    """Ask for the first and following lines of a row of a matrix."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        stride = builder.extract_value(array.strides, 0)
        base = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        place = builder.gep(base, [builder.mul(stride, args[1])])
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()] + [ir.IntType(32)] * 3)
        function = builder.module.globals.get("llvm.prefetch.p0")
        if function is None:
            function = ir.Function(builder.module, kind, "llvm.prefetch.p0")
        flags = [ir.Constant(ir.IntType(32), flag) for flag in (1, 3, 1)]
        for line in range(0, 512, 64):
            builder.call(function, [builder.gep(place, [ir.Constant(ir.IntType(64), line)]), *flags])
        return context.get_dummy_value()

    return types.void(matrix, row), generate


@njit("u8(u8)", inline="always", nogil=True, cache=True)
def _next(state):
    """Return the state after one of xorshift64."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    state ^= state << np.uint64(17)
    return state


@njit("u8(u8)", inline="always", nogil=True, cache=True)
def _drawn(state):
    """Return well mixed bits of a state."""
    return state * np.uint64(2685821657736338717)


@njit("i8(u4[:, ::1], u8)", inline="always", nogil=True, cache=True)
def _draw(alias, bits):
    """Return a word drawn from the alias table (V, 2): the chance of the word itself, times 2^32, and the other one."""
    at = np.int64(((bits >> np.uint64(32)) * np.uint64(alias.shape[0])) >> np.uint64(32))
    if np.uint32(bits & np.uint64(0xFFFFFFFF)) < alias[at, 0]:
        return at
    return np.int64(alias[at, 1])


@njit("f4(f4)", inline="always", nogil=True, cache=True)
def _sigmoid(x):
    if x >= np.float32(_SIGMOID_MAX):
        return np.float32(1)
    if x <= np.float32(-_SIGMOID_MAX):
        return np.float32(0)
    return _SIGMOID[np.int64((x + np.float32(_SIGMOID_MAX)) * np.float32(_SIGMOID_SIZE / _SIGMOID_MAX / 2))]


@njit("i8(i4[::1], i8, u4[::1], u8[::1], i4[::1])", nogil=True, cache=True)
def _sentence(tokens, at, keep, state, kept):
    """Fill `kept` with the next line's words that are known and not sub-sampled; return the place after it.

    `state` holds the random state and takes the number of words.
    """
    count = 0
    s = state[0]
    while at < tokens.shape[0]:
        word = tokens[at]
        if word == -1:
            at += 1
            break
        if count == SENTENCE:
            break
        at += 1
        if word >= 0:
            s = _next(s)
            if np.uint32(_drawn(s) >> np.uint64(32)) <= keep[word]:
                kept[count] = word
                count += 1
    state[0] = s
    state[1] = np.uint64(count)
    return at


class Products(NamedTuple):
    """Loops over rows of S floats; `w` holds six outputs and, behind them, six sums of their changes."""

    dots1: Any
    dots2: Any
    update1: Any
    update2: Any


@functools.lru_cache(maxsize=8)
def products(S: int) -> Products:
    """Return the loops for rows of `S` floats, a constant, so that the compiler keeps all sums in registers."""

    @njit("void(f4[::1], f4[::1], f4[::1], f4[::1])", nogil=True, cache=True, fastmath=True)
    def dots2(a, b, w, g):
        z = np.float32(0)
        p0, p1, p2, p3, p4, p5 = z, z, z, z, z, z
        q0, q1, q2, q3, q4, q5 = z, z, z, z, z, z
        for d in range(S):
            x, y = a[d], b[d]
            w0, w1, w2 = w[d], w[d + S], w[d + 2 * S]
            w3, w4, w5 = w[d + 3 * S], w[d + 4 * S], w[d + 5 * S]
            p0 += x * w0
            p1 += x * w1
            p2 += x * w2
            p3 += x * w3
            p4 += x * w4
            p5 += x * w5
            q0 += y * w0
            q1 += y * w1
            q2 += y * w2
            q3 += y * w3
            q4 += y * w4
            q5 += y * w5
        g[0], g[1], g[2], g[3], g[4], g[5] = p0, p1, p2, p3, p4, p5
        g[6], g[7], g[8], g[9], g[10], g[11] = q0, q1, q2, q3, q4, q5

    @njit("void(f4[::1], f4[::1], f4[::1])", nogil=True, cache=True, fastmath=True)
    def dots1(a, w, g):
        z = np.float32(0)
        p0, p1, p2, p3, p4, p5 = z, z, z, z, z, z
        for d in range(S):
            x = a[d]
            p0 += x * w[d]
            p1 += x * w[d + S]
            p2 += x * w[d + 2 * S]
            p3 += x * w[d + 3 * S]
            p4 += x * w[d + 4 * S]
            p5 += x * w[d + 5 * S]
        g[0], g[1], g[2], g[3], g[4], g[5] = p0, p1, p2, p3, p4, p5

    @njit("void(f4[::1], f4[::1], f4[::1], f4[::1])", nogil=True, cache=True, fastmath=True)
    def update2(a, b, w, g):
        g0, g1, g2, g3, g4, g5 = g[0], g[1], g[2], g[3], g[4], g[5]
        h0, h1, h2, h3, h4, h5 = g[6], g[7], g[8], g[9], g[10], g[11]
        for d in range(S):
            x, y = a[d], b[d]
            w0, w1, w2 = w[d], w[d + S], w[d + 2 * S]
            w3, w4, w5 = w[d + 3 * S], w[d + 4 * S], w[d + 5 * S]
            w[d + 6 * S] += g0 * x + h0 * y
            w[d + 7 * S] += g1 * x + h1 * y
            w[d + 8 * S] += g2 * x + h2 * y
            w[d + 9 * S] += g3 * x + h3 * y
            w[d + 10 * S] += g4 * x + h4 * y
            w[d + 11 * S] += g5 * x + h5 * y
            a[d] = x + (g0 * w0 + g1 * w1 + g2 * w2 + g3 * w3 + g4 * w4 + g5 * w5)
            b[d] = y + (h0 * w0 + h1 * w1 + h2 * w2 + h3 * w3 + h4 * w4 + h5 * w5)

    @njit("void(f4[::1], f4[::1], f4[::1])", nogil=True, cache=True, fastmath=True)
    def update1(a, w, g):
        g0, g1, g2, g3, g4, g5 = g[0], g[1], g[2], g[3], g[4], g[5]
        for d in range(S):
            x = a[d]
            w[d + 6 * S] += g0 * x
            w[d + 7 * S] += g1 * x
            w[d + 8 * S] += g2 * x
            w[d + 9 * S] += g3 * x
            w[d + 10 * S] += g4 * x
            w[d + 11 * S] += g5 * x
            a[d] = x + (
                g0 * w[d] + g1 * w[d + S] + g2 * w[d + 2 * S] + g3 * w[d + 3 * S] + g4 * w[d + 4 * S] + g5 * w[d + 5 * S]
            )

    return Products(dots1, dots2, update1, update2)


@njit("void(f4[:, ::1], i8[::1], i8, f4[::1])", nogil=True, cache=True)
def _gather(outputs, targets, low, w):
    """Copy up to six outputs from targets[low:] to `w`, and set the sums behind them to zero."""
    size = outputs.shape[1]
    used = min(GROUP, targets.shape[0] - low)
    for k in range(used):
        row, to = outputs[targets[low + k]], w[k * size : (k + 1) * size]
        for d in range(size):
            to[d] = row[d]
    w[GROUP * size :] = np.float32(0)


@njit("void(f4[:, ::1], i8[::1], i8, f4[::1], f4)", nogil=True, cache=True)
def _scatter(outputs, targets, low, w, scale):
    """Add the sums in `w`, times `scale`, to their outputs."""
    size = outputs.shape[1]
    used = min(GROUP, targets.shape[0] - low)
    for k in range(used):
        row, change = outputs[targets[low + k]], w[(k + GROUP) * size : (k + GROUP + 1) * size]
        for d in range(size):
            row[d] += scale * change[d]


@njit("f8(i8[::1], i8, f4[::1], f4, b1)", nogil=True, cache=True)
def _errors(targets, low, g, rate, measured):
    """Turn dot products into the steps along them; return the loss where it is `measured`. The first target is the true one."""
    loss = 0.0
    for k in range(GROUP):
        at = low + k
        if at >= targets.shape[0] or (at > 0 and targets[at] == targets[0]):
            g[k] = np.float32(0)
            continue
        p = _sigmoid(g[k])
        if measured:
            loss -= math.log(max(float(p) if at == 0 else 1.0 - float(p), 1e-7))
        g[k] = ((np.float32(1) if at == 0 else np.float32(0)) - p) * rate
    return loss


@functools.lru_cache(maxsize=8)
def windows_kernel(S: int) -> Any:
    """Return the loop of skip-gram for rows of `S` floats: a word's contexts predict it, in batches that share negatives.

    It takes tokens (T,), inputs (V, S), outputs (V, S), chances to keep a word times 2^32 (V,), the alias table (V, 2), window,
    negatives, contexts of a batch, how much faster outputs learn than inputs, the first and the last learning rate, a seed; and
    returns the sum of measured losses, their number, and the words kept.
    """
    dots1, dots2, update1, update2 = products(S)

    @njit(_TRAIN, nogil=True, cache=True, fastmath=True)
    def windows(tokens, inputs, outputs, keep, alias, window, negatives, batch, faster, first_rate, last_rate, seed):
        kept = np.empty(SENTENCE, np.int32)
        targets = np.zeros(negatives + 1, np.int64)
        ahead = np.zeros(negatives + 1, np.int64)
        contexts = np.empty(2 * window + 1, np.int64)
        w = np.zeros(2 * GROUP * S, np.float32)
        g = np.zeros(2 * GROUP, np.float32)
        second = g[GROUP:]
        state = np.array([seed, 0], np.uint64)
        found = np.zeros(3)
        at, total, number = 0, tokens.shape[0], 0
        s = _next(seed)
        for k in range(1, negatives + 1):
            s = _next(s)
            ahead[k] = _draw(alias, _drawn(s))
        while at < total:
            rate = np.float32(first_rate + (last_rate - first_rate) * (at / total))
            at = _sentence(tokens, at, keep, state, kept)
            length = np.int64(state[1])
            found[2] += length
            for i in range(length):
                s = _next(s)
                reach = 1 + np.int64(((_drawn(s) >> np.uint64(32)) * np.uint64(window)) >> np.uint64(32))
                count = 0
                for j in range(max(0, i - reach), min(length, i + reach + 1)):
                    if j != i:
                        contexts[count] = kept[j]
                        count += 1
                if i + window + 1 < length:
                    _prefetch(inputs, np.int64(kept[i + window + 1]))
                    _prefetch(outputs, np.int64(kept[i + 2]))
                for begin in range(0, count, batch):
                    stop = min(begin + batch, count)
                    targets[0] = kept[i]
                    for k in range(1, negatives + 1):
                        targets[k] = ahead[k]
                        s = _next(s)
                        ahead[k] = _draw(alias, _drawn(s))
                        _prefetch(outputs, ahead[k])
                    measured = number % _LOSS_EVERY == 0
                    number += 1
                    if measured:
                        found[1] += stop - begin
                    for low in range(0, negatives + 1, GROUP):
                        _gather(outputs, targets, low, w)
                        c = begin
                        while c < stop:
                            a = inputs[contexts[c]]
                            if c + 1 < stop and contexts[c] != contexts[c + 1]:
                                b = inputs[contexts[c + 1]]
                                dots2(a, b, w, g)
                                found[0] += _errors(targets, low, g, rate, measured)
                                found[0] += _errors(targets, low, second, rate, measured)
                                update2(a, b, w, g)
                                c += 2
                            else:
                                dots1(a, w, g)
                                found[0] += _errors(targets, low, g, rate, measured)
                                update1(a, w, g)
                                c += 1
                        _scatter(outputs, targets, low, w, faster)
        return found

    return windows


@functools.lru_cache(maxsize=8)
def hidden_kernel(S: int) -> Any:
    """Return the loop for a mean of several rows that predicts: CBOW, and skip-gram of words that have subwords.

    It takes what the loop of `windows_kernel` does, with CBOW or not in place of the contexts of a batch, then the rows of
    every word: word v has rows[indptr[v]:indptr[v + 1]].
    """
    dots1, _, update1, _ = products(S)

    @njit(_HIDDEN, nogil=True, cache=True, fastmath=True)
    def hidden(tokens, inputs, outputs, keep, alias, window, negatives, cbow, first_rate, last_rate, seed, indptr, rows):
        kept = np.empty(SENTENCE, np.int32)
        targets = np.zeros(negatives + 1, np.int64)
        w = np.zeros(2 * GROUP * S, np.float32)
        g = np.zeros(2 * GROUP, np.float32)
        h = np.zeros(S, np.float32)
        before = np.zeros(S, np.float32)
        state = np.array([seed, 0], np.uint64)
        found = np.zeros(3)
        at, total, number = 0, tokens.shape[0], 0
        s = _next(seed)
        while at < total:
            rate = np.float32(first_rate + (last_rate - first_rate) * (at / total))
            at = _sentence(tokens, at, keep, state, kept)
            length = np.int64(state[1])
            found[2] += length
            for i in range(length):
                s = _next(s)
                reach = 1 + np.int64(((_drawn(s) >> np.uint64(32)) * np.uint64(window)) >> np.uint64(32))
                low_j, high_j = max(0, i - reach), min(length, i + reach + 1)
                if high_j - low_j < 2:
                    continue
                if i + window + 1 < length:
                    _prefetch(inputs, np.int64(kept[i + window + 1]))
                h[:] = np.float32(0)
                summed = 0
                for j in range(low_j if cbow else i, high_j if cbow else i + 1):
                    if cbow and j == i:
                        continue
                    for place in range(indptr[kept[j]], indptr[kept[j] + 1]):
                        row = inputs[rows[place]]
                        for d in range(S):
                            h[d] += row[d]
                        summed += 1
                scale = np.float32(1) / np.float32(summed)
                for d in range(S):
                    h[d] *= scale
                    before[d] = h[d]
                for j in range(i if cbow else low_j, i + 1 if cbow else high_j):
                    if not cbow and j == i:
                        continue
                    targets[0] = kept[j]
                    for k in range(1, negatives + 1):
                        s = _next(s)
                        targets[k] = _draw(alias, _drawn(s))
                        _prefetch(outputs, targets[k])
                    measured = number % _LOSS_EVERY == 0
                    number += 1
                    if measured:
                        found[1] += 1
                    for low in range(0, negatives + 1, GROUP):
                        _gather(outputs, targets, low, w)
                        dots1(h, w, g)
                        found[0] += _errors(targets, low, g, rate, measured)
                        update1(h, w, g)
                        _scatter(outputs, targets, low, w, np.float32(1))
                for d in range(S):
                    h[d] -= before[d]
                for j in range(low_j if cbow else i, high_j if cbow else i + 1):
                    if cbow and j == i:
                        continue
                    for place in range(indptr[kept[j]], indptr[kept[j] + 1]):
                        row = inputs[rows[place]]
                        for d in range(S):
                            row[d] += h[d]
        return found

    return hidden


def warm_up() -> None:
    """Compile the loops for the default dimension, or load them from the cache."""
    windows_kernel(112)
    hidden_kernel(112)
