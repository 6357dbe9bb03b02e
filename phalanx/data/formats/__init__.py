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

# What is read most and imports little: a warm server loads it before it is known what a job reads.
LIGHT_MODULES = (f"{__name__}.csv", f"{__name__}.libsvm")


def format_named(name: str) -> Format:
    """Return the format that a `ContentType` names.

    Raises:
        UserError: channels cannot have it.
    """
    if name not in _HOMES:
        raise UserError(f"a channel cannot be {name}; {nearest(name, _HOMES)}")
    module, _, attribute = _HOMES[name].partition(":")
    return cast(Format, getattr(importlib.import_module(f".{module}", __name__), attribute)())
