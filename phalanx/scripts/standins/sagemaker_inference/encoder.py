"""Answers from arrays."""

from typing import Any

from phalanx.scripts.handlers import encoded

SUPPORTED_CONTENT_TYPES = {"application/json", "text/csv", "application/x-npy"}


def encode(array_like: Any, content_type: str) -> Any:
    """Return an array as the body of an answer."""
    body = encoded(array_like, content_type)
    return body.decode() if content_type in ("application/json", "text/csv") else body
