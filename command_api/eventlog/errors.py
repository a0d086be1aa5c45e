"""What can go wrong with the log.

EventLogError
├── EventNotCanonical   a value that JSON cannot carry exactly
│   └── EventTooLarge   more than 256 KiB
├── VersionConflict     somebody else appended to the stream first
├── CommandRepeated     the command was carried out before
├── ImportRefused       events with positions that do not fit behind what the log holds
├── LogTooNew           an event was written by a newer release, or is damaged
├── LogUnavailable      the database cannot be reached; what was asked may or may not have happened
│   └── LogFull         its disk is full; nothing was stored
└── LogMismatch         the tables are not this program's log
"""

from schemas.errors import KinoraError


class EventLogError(KinoraError):
    """The root of the log's errors."""

    code = "event_log_error"


class EventNotCanonical(EventLogError):
    """An event holds a value that RFC 8785 JSON cannot carry, such as NaN or an integer beyond 2**53."""

    code = "event_not_canonical"


class EventTooLarge(EventNotCanonical):
    """An event is over 256 KiB; store the bulk as an object and name it by hash."""

    code = "event_too_large"


class VersionConflict(EventLogError):
    """The stream moved on since it was read; load it and decide again."""

    code = "version_conflict"
    retryable = True


class CommandRepeated(EventLogError):
    """The command table holds this principal and key already; look the first outcome up."""

    code = "command_repeated"


class LogUnavailable(EventLogError):
    """The database does not answer. Ask again with the same idempotency key: then nothing happens twice."""

    code = "log_unavailable"
    retryable = True


class LogFull(LogUnavailable):
    """The database's disk is full: nothing was stored, and nothing will be until somebody frees space."""

    code = "log_full"


class ImportRefused(EventLogError):
    """Events brought in do not fit behind what the log holds; nothing of them was stored."""

    code = "import_refused"


class LogTooNew(EventLogError):
    """An event cannot be read: a newer release wrote it, or it is damaged. Nothing is decided without it."""

    code = "log_too_new"


class LogMismatch(EventLogError):
    """The database holds something else than the log that was expected."""

    code = "log_mismatch"
