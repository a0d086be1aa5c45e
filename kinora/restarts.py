"""When a process that died may be started again: later each time, and not for ever."""

from dataclasses import dataclass, field


@dataclass
class Restarts:
    """The recent deaths of one process."""

    allowed: int = 5
    """Deaths within the window before it is given up."""
    window_seconds: float = 120.0
    first_delay_seconds: float = 0.5
    last_delay_seconds: float = 15.0
    _deaths: list[float] = field(default_factory=list)

    def died(self, now: float) -> float | None:
        """Seconds to wait before the next start; None when it has died too often.

        `now` is a clock that only goes forward.
        """
        self._deaths = [death for death in self._deaths if now - death < self.window_seconds]
        self._deaths.append(now)
        if len(self._deaths) > self.allowed:
            return None
        return min(self.last_delay_seconds, self.first_delay_seconds * 2.0 ** (len(self._deaths) - 1))
