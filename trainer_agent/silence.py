"""How long an engine may say nothing before it counts as hung; pure.

An engine speaks with every step, evaluated batch and micro-batch, from the thread that trains: a
keep-alive of another thread would speak for a training that hangs. So the longest step so far says what
silence is normal, above a floor. Before the first step, while libraries and the model are loaded, patience
is never short, whatever the floor.
"""

from qlora_engine.updates import StepTaken, Update

STEPS = 20
"""Silence as long as so many of the slowest steps is still believed to be work."""
START_SECONDS = 120.0
"""The least that an engine may be silent before its first step, on a machine that is busy with others."""
STRETCHES = 10


class Silence:
    """Counted in stretches of listening in vain, never by a clock.

    An agent that was itself suspended, or busy elsewhere, has not listened: it must not blame the engine.
    """

    def __init__(self, floor_seconds: float, *, start_seconds: float = START_SECONDS) -> None:
        self._floor = floor_seconds
        self._start = start_seconds
        self._slowest = 0.0
        self._stretches = 0

    @property
    def allowed_seconds(self) -> float:
        return max(self._floor, STEPS * self._slowest if self._slowest else self._start)

    @property
    def stretch_seconds(self) -> float:
        """How long to listen before saying `unheard`."""
        return self.allowed_seconds / STRETCHES

    def heard(self, update: Update) -> None:
        self._stretches = 0
        if isinstance(update, StepTaken):
            self._slowest = max(self._slowest, update.point.step_seconds)

    def unheard(self) -> bool:
        """A stretch passed without a word; True when that was one too many."""
        self._stretches += 1
        return self._stretches >= STRETCHES
