"""Corrects a forecast by what the first steps really took.

A prediction that is wrong of one step is taken to be wrong of all by the same share. Time is corrected after
the first step, and again once a few more say what a step takes without the first one's warm-up.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from qlora_engine.data.batches import Step
from schemas.footprint import MemoryPart, Preflight

CORRECTION = "correction by the first step"
WARM = 4
"""Steps of the attempt after which its speed is known for good."""


@dataclass
class Calibration:
    """Of one attempt; asked after every step, it answers after the first and after the `WARM`-th."""

    expected: Preflight
    """Of the whole training."""
    of_step: Callable[[Step], Preflight]
    """What was predicted of a step: without frames that are kept."""
    retimed: Callable[[Preflight, float], Preflight]
    """A forecast with the time that it takes at so many operations per second."""
    baseline: int = 0
    """Bytes that do not count: held before there was a model."""
    memory: bool = True
    """Whether the first step is like all others in what it holds."""
    _steps: int = 0
    _seconds: float = 0.0
    _teraflops: float = 0.0
    _mark: int = field(default=0)
    """The most that was held before the step under way."""

    def begin(self, peak_bytes: int) -> None:
        """A step is about to be taken, and `peak_bytes` is the most that the process has held so far."""
        self._mark = peak_bytes

    def after(self, step: Step, seconds: float, peak_bytes: int) -> Preflight | None:
        """The corrected forecast, where this step taught something; `peak_bytes` as in `begin`."""
        self._steps += 1
        if self._steps > WARM:
            return None
        predicted = self.of_step(step)
        if self._steps == 2:  # the first one's warm-up is not the others'
            self._seconds = self._teraflops = 0.0
        self._seconds += seconds
        self._teraflops += predicted.teraflops
        if self._steps == 1 and self.memory:
            rose = peak_bytes > self._mark
            self.expected = remembering(self.expected, predicted, peak_bytes - self.baseline, rose=rose)
        if self._steps not in (1, WARM) or self._seconds <= 0:
            return None
        self.expected = self.retimed(self.expected, self._teraflops * 1e12 / self._seconds)
        return self.expected


def remembering(expected: Preflight, of_step: Preflight, held: int, *, rose: bool) -> Preflight:
    """`expected`, corrected by the `held` bytes after a step that was predicted to take `of_step`.

    Where the step did not raise the process's peak, what was held before is only a bound: it corrects a
    prediction above it, and says nothing of one below.
    """
    if held <= 0 or (not rose and held >= of_step.peak_bytes):
        return expected
    kept = sum(part.size_bytes for part in expected.parts if part.name == "frames")
    rest = expected.peak_bytes - kept
    corrected = max(round(rest * held / of_step.peak_bytes), held)
    correction = MemoryPart(name=CORRECTION, size_bytes=corrected - rest)
    return expected.model_copy(
        update={"parts": (*expected.parts, correction), "peak_bytes": corrected + kept}
    )
