"""Arrays from requests."""

from typing import Any

from phalanx.scripts.handlers import decoded


def decode(obj: Any, content_type: str) -> Any:
    """Return the array in a request."""
    return decoded(obj.encode() if isinstance(obj, str) else bytes(obj), content_type)
