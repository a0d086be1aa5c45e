"""What can go wrong with an attempt, with the code under which it is reported.

KinoraError
└── AgentError
    ├── WorkFolderInUse      another agent runs in this folder
    ├── ProbeFailed          the engine cannot say what this node is able to do
    ├── ShutOut              this node is no agent any more: revoked, or another node took its place
    ├── NoAnswer             NATS or the control plane is silent; ask again
    ├── TransferFailed       one download or upload went wrong
    │   └── ContentMismatch  bytes that are not what their hash says
    ├── InputUnreadable      an input cannot be staged
    ├── ArtifactNotStored    an output cannot be stored
    ├── ReportTooLarge       a report that no event could carry
    └── EngineDied           the engine ended without saying why
        ├── EngineSilent     it did not end, but said nothing any more, and was killed
        └── EngineFailure    … and here it said why
"""

import errno

from schemas.errors import FieldError, KinoraError


class AgentError(KinoraError):
    """`retryable` says whether another attempt may succeed."""

    code = "agent_error"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        errors: tuple[FieldError, ...] = (),
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, code=code, errors=errors)
        if retryable is not None:
            self.retryable = retryable


class WorkFolderInUse(AgentError):
    code = "work_folder_in_use"
    retryable = False


class ProbeFailed(AgentError):
    code = "probe_failed"


class ShutOut(AgentError):
    """Final, and decided by the API alone: that NATS refuses a node may pass."""

    code = "agent_shut_out"
    retryable = False
    exit_code = 77
    """Of the agent's process: EX_NOPERM of sysexits.h. Starting it again does not help."""


class NoAnswer(AgentError):
    code = "no_answer"


class TransferFailed(AgentError):
    """`tries` bounds the repeats of this kind of failure; None leaves it to the caller's patience."""

    code = "transfer_failed"
    tries: int | None = None

    def __init__(self, message: str, *, retryable: bool = True, tries: int | None = None) -> None:
        super().__init__(message, retryable=retryable)
        self.tries = tries


class ContentMismatch(TransferFailed):
    """Repeated because a wire can garble; three times alike means that the object itself is wrong."""

    code = "content_mismatch"

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False, tries=3)


class InputUnreadable(AgentError):
    code = "data_unreadable"


class ArtifactNotStored(AgentError):
    code = "artifact_not_stored"


class ReportTooLarge(AgentError):
    code = "report_too_large"
    retryable = False


class EngineDied(AgentError):
    code = "engine_died"


class EngineSilent(EngineDied):
    code = "engine_silent"


class EngineFailure(EngineDied):
    """The engine's own verdict, with its own code."""


def no_room(error: BaseException, what: str) -> AgentError | None:
    """What to report when `error` says that this node's disk is full; None when it says something else."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return AgentError(
        f"no room on this node for {what}: {error}; free space on the disk of the agent's work folder,"
        " or lower cache_bytes",
        code="disk_full",
    )
