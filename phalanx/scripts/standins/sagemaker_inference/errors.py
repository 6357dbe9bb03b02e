"""What input_fn and output_fn raise."""


class BaseInferenceToolkitError(Exception):
    """An answer that cannot be given."""


class UnsupportedFormatError(BaseInferenceToolkitError):
    """A content type that is not known."""

    def __init__(self, content_type: str) -> None:
        super().__init__(f"Content type {content_type} is not supported by this framework.")
