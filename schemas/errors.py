"""The root of every error that Kinora raises on purpose.

    KinoraError
    ├── command_api.domain.errors.Refused …   a command that may not happen
    ├── trainer_agent.errors …                an attempt that went wrong
    └── qlora_engine.errors …                 training that cannot go on

Doors (HTTP, messages, the CLI) translate by `code` and `retryable`; nothing else reads the text.
"""

from schemas.base import Message


class FieldError(Message):
    """One thing wrong with a request: where it is and what to do about it."""

    pointer: str
    """JSON pointer (RFC 6901) into the request, such as ``/hyperparameters/rank``."""
    code: str
    message: str
    """Names the value and the remedy."""


class KinoraError(Exception):
    """An error with a stable code; its message names the field, the value and the remedy."""

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, code: str | None = None, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.errors = errors
        if code is not None:
            self.code = code
