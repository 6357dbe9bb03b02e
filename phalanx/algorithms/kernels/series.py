"""Loops over series that lie one after another in flat arrays: windows cut from all of them at once.

Legend of shapes: B windows, T steps, I inputs, L lags, F features of a step, N values of all series.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit


@njit("void(f4[::1], f4[:, ::1], i8[::1], i8[::1], i8, f4[:, :, ::1], f4[:, ::1], f4[:, ::1], f4[::1])", nogil=True, cache=True)
def cut(values, features, lags, places, context, inputs, target, observed, scale):
    """Write windows.

    Args:
        values: (N,) of all series, NaN where one is missing; before each series lie as many NaN as a window can look back.
        features: (N, F) of each value's time.
        lags: (L,) how far inputs look back.
        places: (B,) where each window's first value lies.
        context: steps whose mean magnitude is the scale.
        inputs: (T, B, L + F) written: values at the lags, or the context's mean where one is
            missing (0 where that is not known either), divided by the scale; then features.
        target: (T, B) written: values, 0 where missing.
        observed: (T, B) written: 1 where a value is known.
        scale: (B,) written: mean magnitude of what is known in the context; 1 where that is nothing or zeros.
    """
    steps, count = inputs.shape[0], lags.shape[0]
    for b in range(places.shape[0]):
        total, plain, known = 0.0, 0.0, 0
        for t in range(steps):
            value = values[places[b] + t]
            there = not np.isnan(value)
            target[t, b] = value if there else np.float32(0)
            observed[t, b] = np.float32(1) if there else np.float32(0)
            if there and t < context:
                total += abs(np.float64(value))
                plain += np.float64(value)
                known += 1
        of = np.float32(total / known) if total > 0.0 else np.float32(1)
        of = of if of > 0 else np.float32(1)
        scale[b] = of
        share = np.float32(1) / of
        empty = np.float32(plain / known) * share if known > 0 else np.float32(0)
        for t in range(steps):
            place = places[b] + t
            row = inputs[t, b]
            for k in range(count):
                value = values[place - lags[k]]
                row[k] = empty if np.isnan(value) else value * share
            for k in range(features.shape[1]):
                row[count + k] = features[place, k]
