"""The part of a dataset's or model's row that tells of its import."""

from typing import Any

from projections.documents import ViewModel
from schemas.events.imports import ImportFailed, ImportRetried
from schemas.imports import ImportProblem, ImportSource


class Imported(ViewModel):
    """Where the files came from, when they did not come by upload."""

    source: ImportSource | None = None
    import_attempt: int = 0
    """0 when the files are uploaded."""
    import_problem: ImportProblem | None = None
    """Why the last attempt failed."""


def imported_changes(event: ImportFailed | ImportRetried) -> dict[str, Any]:
    """What a failure or another try changes."""
    if isinstance(event, ImportRetried):
        return {"status": "importing", "import_attempt": event.attempt, "import_problem": None}
    problem = ImportProblem(code=event.code, message=event.message, retryable=event.retryable)
    return {"status": "import_failed", "import_attempt": event.attempt, "import_problem": problem}
