"""What can go wrong with proofs.

TransparencyError
├── LogContradicted   the log is not what a signed head says
├── NoHead            there is no such signed head
└── NotInHead         the event is newer than the head
"""

from schemas.errors import KinoraError


class TransparencyError(KinoraError):
    """The root of these errors."""

    code = "transparency_error"


class LogContradicted(TransparencyError):
    """The log does not give the trees that a signed head names: it was changed behind our back."""

    code = "log_contradicted"


class NoHead(TransparencyError):
    """There is no such signed head."""

    code = "no_head"


class NotInHead(TransparencyError):
    """The event is newer than the head; ask again once a later one is signed."""

    code = "not_in_head"
    retryable = True
