"""Requests as matrices."""

from typing import Any

import xgboost

from phalanx.scripts.handlers import decoded


def decode(obj: Any, content_type: str) -> xgboost.DMatrix:
    """Return a request as a DMatrix."""
    return xgboost.DMatrix(decoded(obj.encode() if isinstance(obj, str) else bytes(obj), content_type))


def csv_to_dmatrix(input: Any, dtype: Any = None) -> xgboost.DMatrix:
    """Return csv rows without labels as a DMatrix."""
    return decode(input, "text/csv")


def libsvm_to_dmatrix(string_like: Any) -> xgboost.DMatrix:
    """Return libsvm rows as a DMatrix."""
    return decode(string_like, "text/libsvm")
