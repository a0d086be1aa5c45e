"""Why a command may not happen; doors translate the class and its stable code.

Refused
├── NotFound    the thing does not exist, or not for this caller
├── Conflict    the thing is not in a phase that allows it; `code` names the broken rule
├── Invalid     the command can never be right as it is
└── Forbidden   the caller may not do it
"""

from schemas.errors import FieldError, KinoraError


class Refused(KinoraError):
    """A command was decided against; nothing was recorded."""

    code = "refused"


class NotFound(Refused):
    """There is no such thing, or none that the caller may know of."""

    code = "not_found"


class Conflict(Refused):
    """The present phase does not allow the command."""

    code = "conflict"


class Invalid(Refused):
    """The command contradicts itself or what it refers to."""

    code = "invalid"

    @classmethod
    def field(cls, pointer: str, code: str, message: str) -> "Invalid":
        """One bad field: `pointer` is a JSON pointer into the request."""
        return cls(message, code=code, errors=(FieldError(pointer=pointer, code=code, message=message),))


class Forbidden(Refused):
    """The caller may not do this."""

    code = "forbidden"


class ImpossibleHistory(KinoraError):
    """A stream holds an event that no decision could have produced there: the log was damaged."""

    code = "impossible_history"

    def __init__(self, state: object, event: object) -> None:
        super().__init__(
            f"{type(event).__name__} cannot follow in state {type(state).__name__};"
            " verify the log and restore it from a backup"
        )
