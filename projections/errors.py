"""What can go wrong on the read side.

KinoraError
└── ProjectionError
    ├── UnknownView         no view has that name
    ├── MissingRow          an event follows one that the view never saw
    ├── NotParked           a stream to replay is followed already
    ├── ViewOutdated        the tables were made by another version of the view
    ├── RebuildBusy         somebody else is rebuilding that view
    └── RebuildRefused      what was built does not agree with the log
"""

from schemas.errors import KinoraError


class ProjectionError(KinoraError):
    """The read side cannot do what was asked."""

    code = "projection_error"


class UnknownView(ProjectionError):
    """No view has that name."""

    code = "unknown_view"


class MissingRow(ProjectionError):
    """An event changes a row that no earlier event made; its stream is parked until that is put right."""

    code = "missing_row"


class NotParked(ProjectionError):
    """The view follows that stream already, or has never heard of it."""

    code = "not_parked"


class ViewOutdated(ProjectionError):
    """The view's tables were made by another version of its fold, and wait for their rebuild."""

    code = "view_outdated"
    retryable = True


class RebuildBusy(ProjectionError):
    """A view is built by one process at a time."""

    code = "rebuild_busy"
    retryable = True


class RebuildRefused(ProjectionError):
    """The new tables do not agree with the log, so the old ones go on serving."""

    code = "rebuild_refused"
