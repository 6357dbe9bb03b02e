"""Arrays from requests, and answers from arrays."""

from typing import Any

from phalanx.scripts.handlers import decoded, encoded


def decode(obj: Any, content_type: str) -> Any:
    """Return the array in a request."""
    return decoded(obj.encode() if isinstance(obj, str) else bytes(obj), content_type)


def encode(array_like: Any, content_type: str) -> Any:
    """Return an array as the body of an answer."""
    body = encoded(array_like, content_type)
    return body.decode() if content_type in ("application/json", "text/csv") else body
