"""Words of text: cutting lines into words, counting them in a hash table, looking them up, hashing character n-grams.

The hash is the one fastText files rely on: FNV-1a of 32 bits that extends every byte's sign. A table is open-addressed and at
most half full. Legend: data (bytes,) uint8, its last byte ends a line; E entries of a table, V words of a vocabulary.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit

LINE_END = -1  # among the numbers of words
UNKNOWN = -2
_OFFSET, _PRIME = np.uint32(2166136261), np.uint32(16777619)
_CHAIN = np.uint64(116049371)  # of word n-grams, as in fastText
_TABLE = "i4[::1], u4[::1], i8[::1], i4[::1], u1[::1]"


@njit(inline="always")
def _is_space(byte):
    return byte == 32 or (9 <= byte <= 13) or byte == 0


@njit("u4(u1[::1], i8, i8)", nogil=True, cache=True, inline="always")
def fnv(data, start, stop):
    """Return the hash of data[start:stop]."""
    h = _OFFSET
    for at in range(start, stop):
        h = np.uint32((h ^ np.uint32(np.int8(data[at]))) * _PRIME)
    return h


@njit(f"i8({_TABLE}, u1[::1], i8, i8, u4)", nogil=True, cache=True, inline="always")
def _slot(slots, hashes, starts, lengths, blob, data, start, stop, h):
    """Return the slot that holds data[start:stop], or the empty one where it belongs."""
    mask = slots.shape[0] - 1
    slot = np.int64(h) & mask
    length = stop - start
    while True:
        entry = slots[slot]
        if entry < 0:
            return slot
        if hashes[entry] == h and lengths[entry] == length:
            begin = starts[entry]
            same = True
            for at in range(length):
                if blob[begin + at] != data[start + at]:
                    same = False
                    break
            if same:
                return slot
        slot = (slot + 1) & mask


@njit(f"i8(u1[::1], {_TABLE}, i8[::1], i8[::1], i4[::1])", nogil=True, cache=True)
def count_words(data, slots, hashes, starts, lengths, blob, counts, place, out):
    """Count words; write their entries, and `LINE_END`s, to `out`, return how many; a new word gets an entry.

    Stops early where the table or its blob is full: enlarge them and call again.

    Args:
        data: lines.
        slots: (2^n,) entries, -1 where empty.
        hashes: (E,) of the entries.
        starts: (E,) where their bytes begin in `blob`.
        lengths: (E,) how many bytes.
        blob: bytes of all entries.
        counts: (E,) occurrences.
        place: entries used, bytes of the blob used, bytes of data done; changed.
        out: (at least len(data),).
    """
    entries, used, at = place[0], place[1], place[2]
    end = data.shape[0]
    written = 0
    while at < end:
        byte = data[at]
        if _is_space(byte):
            if byte == 10:
                out[written] = LINE_END
                written += 1
            at += 1
            continue
        start = at
        h = _OFFSET
        while at < end and not _is_space(data[at]):
            h = np.uint32((h ^ np.uint32(np.int8(data[at]))) * _PRIME)
            at += 1
        slot = _slot(slots, hashes, starts, lengths, blob, data, start, at, h)
        entry = slots[slot]
        if entry < 0:
            length = at - start
            if entries * 2 >= slots.shape[0] or entries == hashes.shape[0] or used + length > blob.shape[0]:
                at = start
                break
            entry = entries
            slots[slot] = entry
            hashes[entry] = h
            starts[entry] = used
            lengths[entry] = length
            counts[entry] = 0
            blob[used : used + length] = data[start:at]
            used += length
            entries += 1
        counts[entry] += 1
        out[written] = entry
        written += 1
    place[0], place[1], place[2] = entries, used, at
    return written


@njit("void(u4[::1], i4[::1], i8)", nogil=True, cache=True)
def fill_slots(hashes, slots, entries):
    """Put the first `entries` entries into empty slots, all -1 before."""
    mask = slots.shape[0] - 1
    for entry in range(entries):
        slot = np.int64(hashes[entry]) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = entry


@njit(f"i8(u1[::1], {_TABLE}, i4[::1], u4[::1])", nogil=True, cache=True)
def find_words(data, slots, hashes, starts, lengths, blob, out, out_hashes):
    """Write the entry of every word (or `UNKNOWN`), and `LINE_END`s, and the words' hashes; return how many."""
    at, end, written = 0, data.shape[0], 0
    while at < end:
        byte = data[at]
        if _is_space(byte):
            if byte == 10:
                out[written] = LINE_END
                out_hashes[written] = 0
                written += 1
            at += 1
            continue
        start = at
        while at < end and not _is_space(data[at]):
            at += 1
        h = fnv(data, start, at)
        entry = slots[_slot(slots, hashes, starts, lengths, blob, data, start, at, h)]
        out[written] = entry if entry >= 0 else UNKNOWN
        out_hashes[written] = h
        written += 1
    return written


@njit("i8(u1[::1], i8, i8, i8, i4[::1])", nogil=True, cache=True)
def subwords(word, least, most, buckets, out):
    """Write the buckets of the character n-grams of `word`, which stands between `<` and `>`; return how many.

    Args:
        word: (bytes,) UTF-8 with its brackets.
        least: fewest characters of an n-gram.
        most: most characters.
        buckets: how many there are.
        out: (at least len(word) * most,).
    """
    size, count = word.shape[0], 0
    for start in range(size):
        if word[start] & 0xC0 == 0x80:
            continue
        stop, n = start, 1
        h = _OFFSET
        while stop < size and n <= most:
            h = np.uint32((h ^ np.uint32(np.int8(word[stop]))) * _PRIME)
            stop += 1
            while stop < size and word[stop] & 0xC0 == 0x80:
                h = np.uint32((h ^ np.uint32(np.int8(word[stop]))) * _PRIME)
                stop += 1
            if n >= least and not (n == 1 and (start == 0 or stop == size)):
                out[count] = np.int64(h) % buckets
                count += 1
            n += 1
    return count


@njit("i8(i4[::1], i4[::1], u4[::1], i8, i8, i8, i8, i4[::1], i4[::1], i4[::1], i8[::1], i4[::1])", nogil=True, cache=True)
def bags(tokens, rows, hashes, words, grams, buckets, end_row, rows_of_buckets, out, counts, lines, labels):
    """Turn lines into bags: every line's distinct rows with how often they occur, ascending, and its labels.

    Args:
        tokens: (T,) entries, `UNKNOWN`s and `LINE_END`s.
        rows: (T,) of each token: its word's row, -2 - label of a label, -1 of what counts for nothing (but in n-grams).
        hashes: (T,) of the tokens.
        words: row numbers below are words'.
        grams: most words of an n-gram.
        buckets: of n-grams.
        end_row: row of the word that stands for a line's end, -1: none.
        rows_of_buckets: (buckets,) rows, -1: none; where `counts` is empty, buckets that occur are marked here with 0 instead.
        out: rows, at least (T + lines) * grams.
        counts: beside them.
        lines: (2 * lines + 2,) ends of each line's rows and of its labels, after a leading pair of zeros.
        labels: labels of all lines.

    Returns:
        How many lines.
    """
    end_hash = np.uint32(3617362777)  # of </s>
    marking = counts.shape[0] == 0
    chain = np.empty(tokens.shape[0] + 1, np.uint64)
    at, used, named, line = 0, 0, 0, 0
    lines[0], lines[1] = 0, 0
    while at < tokens.shape[0]:
        length, first = 0, used
        while True:
            ended = tokens[at] == LINE_END
            row = end_row if ended else rows[at]
            h = end_hash if ended else hashes[at]
            if not ended and row <= -2:
                if not marking:
                    labels[named] = -2 - row
                    named += 1
            else:
                chain[length] = np.uint64(np.int64(np.int32(h)))
                length += 1
                if row >= 0 and not marking:
                    out[used] = row
                    used += 1
            at += 1
            if ended:
                break
        if grams > 1:
            for i in range(length):
                h64 = chain[i]
                for j in range(i + 1, min(i + grams, length)):
                    h64 = h64 * _CHAIN + chain[j]
                    bucket = np.int64(h64 % np.uint64(buckets))
                    if marking:
                        rows_of_buckets[bucket] = 0
                    elif rows_of_buckets[bucket] >= 0:
                        out[used] = rows_of_buckets[bucket]
                        used += 1
                    else:  # never seen in training: a row of zeros, which still counts in the mean
                        out[used] = -1
                        used += 1
        if not marking:
            run = out[first:used]
            run.sort()
            kept = first
            for i in range(first, used):
                if i > first and out[i] == out[kept - 1]:
                    counts[kept - 1] += 1
                else:
                    out[kept] = out[i]
                    counts[kept] = 1
                    kept += 1
            used = kept
        line += 1
        lines[2 * line], lines[2 * line + 1] = used, named
    return line
