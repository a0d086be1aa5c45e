"""How many feeds one person may hold open, so that nobody takes all of a process's connections."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import KinoraError


class FeedsFull(KinoraError):
    """The caller holds as many feeds as one may."""

    code = "too_many_feeds"


class FeedSlots:
    """Counts open feeds per person, in this process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self, user_id: str) -> Iterator[None]:
        """One feed of a person for as long as the context lasts.

        Raises:
            FeedsFull: close another one first.
        """
        if self._open[user_id] >= self._most:
            raise FeedsFull(f"{self._most} feeds are open; close one first")
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]
