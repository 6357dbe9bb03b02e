"""What an output_fn may return."""

from typing import Any


class Response(tuple[Any, str]):
    """A body with its content type."""

    def __new__(
        cls, response: Any = None, accept: str = "application/json", status: int = 200, mimetype: str = ""
    ) -> "Response":
        """Make a pair of body and content type."""
        return super().__new__(cls, (response, mimetype or accept))
