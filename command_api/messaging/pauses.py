"""When a queued attempt may be offered, however the wall clock jumps; pure.

The log can only name a wall-clock time. An orchestrator translates it once, when it first sees the attempt,
into its own clock that only goes forward; and since a pause has a length, a wall clock that was set back
meanwhile cannot stretch it.
"""

from collections.abc import Container
from datetime import datetime, timedelta


class Pauses:
    """Known attempts and when each is due, in seconds of the caller's monotonic clock."""

    def __init__(self) -> None:
        self._due: dict[tuple[str, int], float] = {}

    def due_in(
        self,
        attempt: tuple[str, int],
        not_before: datetime | None,
        pause: timedelta,
        *,
        wall: datetime,
        monotonic: float,
    ) -> float:
        """Seconds until `attempt` may be offered; 0 when it may be now."""
        if not_before is None:
            return 0.0
        if attempt not in self._due:
            left = min(max(not_before - wall, timedelta(0)), pause)
            self._due[attempt] = monotonic + left.total_seconds()
        return max(0.0, self._due[attempt] - monotonic)

    def keep(self, queued: Container[str]) -> None:
        """Forget the attempts of every item that is not queued any more."""
        self._due = {attempt: due for attempt, due in self._due.items() if attempt[0] in queued}
