"""Compiled kernels on disk that several processes may write at once.

Numba names what it compiled from a function by a number that comes round again, and enters it in the function's index before
the code is there. A process that starts while another compiles then finds the code of an earlier source, or of other types,
under the name and runs that. Here a name stands for one source and one set of types, and the index is told after the code.

Modules with cached kernels import this one before they compile.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from numba.core.caching import IndexDataCacheFile

_numbas_own = IndexDataCacheFile.save


def _save(self, key, data) -> None:
    """Stand in for `IndexDataCacheFile.save`."""
    try:
        _save_by_content(self, key, data)
    except AttributeError:  # a numba that is other inside
        _numbas_own(self, key, data)


def _save_by_content(self, key, data) -> None:
    what = hashlib.sha256(repr((self._version, self._source_stamp, key)).encode()).hexdigest()[:16]
    base = self._data_name_pattern.partition(".{")[0]
    name = f"{base}.{what}.nbc"
    self._save_data(name, data)
    overloads = self._load_index()
    if not overloads:  # none, or those of an earlier source; whoever still looks for these compiles them again
        for other in Path(self._cache_path).iterdir():
            if other.name.startswith(f"{base}.") and other.suffix == ".nbc" and other.name != name:
                with contextlib.suppress(OSError):
                    other.unlink()
    if overloads.get(key) != name:
        overloads[key] = name
        self._save_index(overloads)


IndexDataCacheFile.save = _save
