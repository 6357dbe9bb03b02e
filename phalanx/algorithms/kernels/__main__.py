"""`python -m phalanx.algorithms.kernels` compiles every numba kernel once, so that no job has to wait for it."""

from __future__ import annotations

from ...data import kernels, recordio_kernels
from . import (
    blazingtext,
    bounds,
    factorization,
    forest,
    forest_batch,
    forest_stream,
    kmeans,
    labels,
    linear,
    logistic,
    lstm,
    moves,
    paths,
    quasi_newton,
    series,
    swaps,
    words,
)


def main() -> None:
    """Compile all kernels into numba's cache, or load those that lie there."""
    kernels.warm_up()
    recordio_kernels.warm_up()
    tables = (
        bounds,
        factorization,
        forest,
        forest_batch,
        forest_stream,
        kmeans,
        linear,
        logistic,
        lstm,
        paths,
        quasi_newton,
        series,
        swaps,
    )
    by_import = ", ".join(module.__name__ for module in (*tables, blazingtext, labels, moves, words))
    print(f"compiled: {kernels.__name__}, {recordio_kernels.__name__}, {by_import}")


if __name__ == "__main__":
    main()
