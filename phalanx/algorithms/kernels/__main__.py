"""`python -m phalanx.algorithms.kernels` compiles every numba kernel once, so that no job has to wait for it."""

from __future__ import annotations

from ...data import kernels, recordio_kernels
from . import kmeans


def main() -> None:
    """Compile all kernels into numba's cache, or load those that lie there."""
    kernels.warm_up()
    recordio_kernels.warm_up()
    print(f"compiled: {kernels.__name__}, {recordio_kernels.__name__}, {kmeans.__name__}")  # the last by its import


if __name__ == "__main__":
    main()
