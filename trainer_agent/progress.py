"""Measured steps as the few reports that the log keeps; telemetry has every point."""

from collections.abc import Sequence

from qlora_engine.updates import StepTaken
from schemas.events.job import ProgressPoint
from schemas.footprint import Preflight
from schemas.work import Progressed

MOST_POINTS = 64
_SHORTEST_SECONDS = 1.0
_REPORTS_PER_TRAINING = 1000


def thin(points: Sequence[ProgressPoint], most: int = MOST_POINTS) -> tuple[ProgressPoint, ...]:
    """At most `most` of `points`, evenly spread, the first and the last always among them."""
    if len(points) <= most:
        return tuple(points)
    if most == 1:
        return (points[-1],)
    return tuple(points[round(index * (len(points) - 1) / (most - 1))] for index in range(most))


class ProgressReports:
    """Gathers steps and says when they are due: the first at once, then every max(1 s, duration / 1000)."""

    def __init__(self) -> None:
        self._points: list[ProgressPoint] = []
        self._latest: StepTaken | None = None
        self._expected: Preflight | None = None
        self._began: float | None = None
        self._reported = 0.0

    def add(self, update: StepTaken, now: float) -> Progressed | None:
        """Take a step at monotonic time `now`; returns the report that has become due."""
        self._points.append(update.point)
        self._latest = update
        if self._began is None:
            self._began = now
        elif now - self._reported < self._interval(update, now - self._began):
            return None
        self._reported = now
        return self.flush()

    def expect(self, corrected: Preflight) -> None:
        """The next report says what the training is now expected to take."""
        self._expected = corrected

    def flush(self) -> Progressed | None:
        """The steps not reported yet: due before anything that presupposes them, and at the end."""
        if self._latest is None or not self._points:
            return None
        points, self._points = thin(self._points), []
        expected, self._expected = self._expected, None
        return Progressed(
            step=self._latest.point.step,
            total_steps=self._latest.total_steps,
            epoch=self._latest.epoch,
            points=points,
            eta_seconds=self._latest.eta_seconds,
            peak_memory_bytes=self._latest.peak_memory_bytes,
            preflight=expected,
        )

    def _interval(self, update: StepTaken, elapsed: float) -> float:
        planned = elapsed + (update.eta_seconds or 0.0)
        return max(_SHORTEST_SECONDS, planned / _REPORTS_PER_TRAINING)
