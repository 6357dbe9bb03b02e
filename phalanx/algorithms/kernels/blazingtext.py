"""Learning word vectors: skip-gram, skip-gram with negatives shared by a window, CBOW, all by negative sampling.

Shared negatives and small matrix products: Ji et al., "Parallelizing Word2Vec in Shared and Distributed Memory", 2016. Threads
change the same matrices without locks, as Niu et al., "Hogwild!", 2011.

Legend: V words, S floats of a row of a matrix (`stride`: the dimension rounded up, the rest stays zero), K negatives. The
outputs of a window (a word and its negatives) are handled six at a time: see `kernels.rows`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, operator, arg-type, call-overload"

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

from .rows import GROUP, add_group, add_to_group, dots, take_group

SENTENCE = 1024  # most words of a line that a window may span at once
_SIGMOID_SIZE, _SIGMOID_MAX = 1024, 8.0
_SIGMOID = (1 / (1 + np.exp(-(np.arange(_SIGMOID_SIZE + 1) * 2 * _SIGMOID_MAX / _SIGMOID_SIZE - _SIGMOID_MAX)))).astype(
    np.float32
)
_LOSS_EVERY = 64  # windows: the loss is a sample's
_TEXT = "i4[::1], f4[:, ::1], f4[:, ::1], u4[::1], u4[:, ::1], i8, i8"
_WINDOWS = f"f8[::1]({_TEXT}, i8, f4, f8, f8, u8)"
_MEANS = f"f8[::1]({_TEXT}, b1, f4, f8, f8, u8, i8[::1], i4[::1])"


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


@njit("i8(u8, i8)", inline="always", nogil=True, cache=True)
def _reach(state, window):
    """Return how many words to each side are contexts this time, 1 to `window`."""
    return 1 + np.int64(((_drawn(state) >> np.uint64(32)) * np.uint64(window)) >> np.uint64(32))


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


@njit(inline="always")
def _errors(targets, low, g, begin, rate, measured):
    """Turn the products in g[begin : begin + GROUP] into steps along them; return the loss where it is `measured`.

    The first target is the true one.
    """
    loss = 0.0
    for k in range(GROUP):
        at = low + k
        if at >= targets.shape[0] or (at > 0 and targets[at] == targets[0]):
            g[begin + k] = np.float32(0)
            continue
        p = _sigmoid(g[begin + k])
        if measured:
            loss -= math.log(max(float(p) if at == 0 else 1.0 - float(p), 1e-7))
        g[begin + k] = ((np.float32(1) if at == 0 else np.float32(0)) - p) * rate
    return loss


@njit(inline="always")
def _learn(inputs, places, first, last, outputs, targets, w, g, group_places, rate, faster, measured):
    """Move rows of `inputs`, at places[first:last], towards the first target and away from the others; return the loss.

    Each is held against the targets as they were before; outputs move `faster` times as far. No views of arrays are made here:
    counting the references to a matrix would cost the threads that share it more than the products do.
    """
    size = inputs.shape[1]
    loss = 0.0
    for low in range(0, targets.shape[0], GROUP):
        for k in range(GROUP):  # what is left over stands in for the first, and is not moved
            group_places[k] = targets[low + k if low + k < targets.shape[0] else low] * size
        take_group(outputs, group_places, w, size)
        for c in range(first, last):
            dots(inputs, places[c], w, g, c * GROUP, size)
            loss += _errors(targets, low, g, c * GROUP, rate, measured)
        add_to_group(outputs, group_places, inputs, places, first, last, g, faster, size)
        add_group(inputs, places, first, last, w, g, size)
    return loss


@njit(_WINDOWS, nogil=True, cache=True, fastmath=True)
def learn_windows(tokens, inputs, outputs, keep, alias, window, negatives, batch, faster, first_rate, last_rate, seed):
    """Learn by skip-gram: a word's contexts predict it, in batches that share negatives.

    Args:
        tokens: (T,) int32, -1 where a line ends, other negative numbers for words left out.
        inputs: (V, S).
        outputs: (V, S).
        keep: (V,) chances to keep a word, times 2^32.
        alias: (V, 2), see `_draw`.
        window: most words to each side.
        negatives: K.
        batch: most contexts that share negatives.
        faster: how much faster outputs learn than inputs.
        first_rate: learning rate at the first token.
        last_rate: and after the last one.
        seed: not 0.

    Returns:
        (3,) the sum of measured losses, their number, and the words kept.
    """
    size = inputs.shape[1]
    kept = np.empty(SENTENCE, np.int32)
    targets = np.zeros(negatives + 1, np.int64)
    ahead = np.zeros(negatives + 1, np.int64)
    contexts = np.empty(2 * window, np.int64)
    w = np.zeros(GROUP * size, np.float32)
    g = np.zeros(GROUP * 2 * window, np.float32)
    group_places = np.zeros(GROUP, np.int64)
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
            reach = _reach(s, window)
            count = 0
            for j in range(max(0, i - reach), min(length, i + reach + 1)):
                if j != i:
                    contexts[count] = np.int64(kept[j]) * size
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
                loss = _learn(inputs, contexts, begin, stop, outputs, targets, w, g, group_places, rate, faster, measured)
                if measured:
                    found[0] += loss
                    found[1] += stop - begin
    return found


@njit(_MEANS, nogil=True, cache=True, fastmath=True)
def learn_means(
    tokens, inputs, outputs, keep, alias, window, negatives, cbow, faster, first_rate, last_rate, seed, indptr, rows
):
    """Learn by means of several rows that predict: CBOW, and skip-gram of words that have subwords.

    Args:
        tokens: this and what is not named here as in `learn_windows`.
        inputs: (R, S).
        outputs: (V, S).
        keep: (V,).
        alias: (V, 2).
        window: most words to each side.
        negatives: K.
        cbow: a word's contexts together predict it; otherwise the word predicts each of them.
        faster: how much faster outputs learn than inputs.
        first_rate: learning rate at the first token.
        last_rate: and after the last one.
        seed: not 0.
        indptr: (V + 1,) word v is the mean of rows[indptr[v]:indptr[v + 1]].
        rows: see `indptr`.

    Returns:
        As `learn_windows`.
    """
    size = inputs.shape[1]
    kept = np.empty(SENTENCE, np.int32)
    targets = np.zeros(negatives + 1, np.int64)
    w = np.zeros(GROUP * size, np.float32)
    g = np.zeros(GROUP, np.float32)
    group_places = np.zeros(GROUP, np.int64)
    mean = np.zeros((1, size), np.float32)
    place = np.zeros(1, np.int64)
    before = np.zeros(size, np.float32)
    h = mean[0]
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
            reach = _reach(s, window)
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
                for p in range(indptr[kept[j]], indptr[kept[j] + 1]):
                    row = np.uint64(rows[p])
                    for d in range(size):
                        h[d] += inputs[row, d]
                    summed += 1
            scale = np.float32(1) / np.float32(summed)
            for d in range(size):
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
                loss = _learn(mean, place, 0, 1, outputs, targets, w, g, group_places, rate, faster, measured)
                if measured:
                    found[0] += loss
                    found[1] += 1
            for d in range(size):
                h[d] -= before[d]
            for j in range(low_j if cbow else i, high_j if cbow else i + 1):
                if cbow and j == i:
                    continue
                for p in range(indptr[kept[j]], indptr[kept[j] + 1]):
                    row = np.uint64(rows[p])
                    for d in range(size):
                        inputs[row, d] += h[d]
    return found
