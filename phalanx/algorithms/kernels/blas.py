"""One BLAS thread where Python threads do the spreading."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_users = 0
_limit = ExitStack()


@functools.cache
def _controller() -> ThreadpoolController:
    import scipy.linalg.cython_blas  # noqa: F401 - products in numba's kernels go there: it must be loaded to be found

    return ThreadpoolController()  # looks through the loaded libraries once: a few milliseconds


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Within: numpy's matrix products take one thread.

    The limit holds for the process, so the first to enter sets it and the last to leave restores what was.
    """
    global _users
    with _lock:
        if _users == 0:
            _limit.enter_context(_controller().limit(limits=1, user_api="blas"))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limit.close()
