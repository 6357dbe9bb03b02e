"""`python -m phalanx.algorithms.kernels` compiles every numba kernel once, so that no job has to wait for it."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from ...data import kernels, recordio_kernels


def main() -> None:
    """Compile all kernels into numba's cache, or load those that lie there."""
    kernels.warm_up()
    recordio_kernels.warm_up()
    beside = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name != "__main__"]
    by_import = [importlib.import_module(f"{__package__}.{name}").__name__ for name in beside]
    print(f"compiled: {', '.join([kernels.__name__, recordio_kernels.__name__, *by_import])}")


if __name__ == "__main__":
    main()
