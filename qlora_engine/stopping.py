"""The wish to stop, set by other threads and signal handlers, honoured between optimizer steps."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["graceful", "immediate"]


@dataclass
class StopWish:
    """Assignments are atomic, so no lock is needed, not even in a signal handler."""

    mode: Mode | None = None

    def ask(self, mode: Mode) -> None:
        """A later graceful wish never weakens an immediate one."""
        if self.mode != "immediate":
            self.mode = mode
