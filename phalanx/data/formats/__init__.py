"""One file a format; `format_named` finds it."""

from __future__ import annotations

import importlib
from typing import cast

from ...errors import UserError, nearest
from ..format import Format

_HOMES = {
    "csv": "csv:Csv",
    "libsvm": "libsvm:LibSvm",
    "recordio": "recordio:RecordIO",
    "parquet": "parquet:Parquet",
    "jsonlines": "jsonlines:JsonLines",
    "text": "text:Text",
}


def format_named(name: str) -> Format:
    """Return the format that a `ContentType` names.

    Raises:
        UserError: channels cannot have it.
    """
    if name not in _HOMES:
        raise UserError(f"a channel cannot be {name}; {nearest(name, _HOMES)}")
    module, _, attribute = _HOMES[name].partition(":")
    return cast(Format, getattr(importlib.import_module(f".{module}", __name__), attribute)())
