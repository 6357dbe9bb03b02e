"""What the Accept of a request says."""


def parse_accept(accept: str) -> list[str]:
    """Return the content types that an answer may have, best first."""
    return [part.split(";")[0].strip() for part in accept.split(",")]
