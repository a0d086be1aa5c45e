"""Why files from elsewhere could not be had."""

from schemas.errors import KinoraError


class SourceFailed(KinoraError):
    """The source cannot be reached, refuses, or offers what cannot be used; `code` tells which.

    Messages name the source as the user gave it, never an address with a signature or a credential.
    """

    code = "source_failed"

    def __init__(self, message: str, *, code: str, retryable: bool = False) -> None:
        super().__init__(message, code=code)
        self.retryable = retryable
