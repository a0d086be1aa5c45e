"""Events as text, made once for all clients that are sent the same event."""

from command_api.feed import frames
from projections.reader import LogRow

_KEPT_BYTES = 4 * 2**20


class EventTexts:
    """The part of event frames that is the same for every subscription; the newest are kept."""

    def __init__(self, log_id: str) -> None:
        self._log_id = log_id
        self._kept: dict[int, tuple[bytes, str]] = {}
        self._kept_bytes = 0

    def frame_rest(self, row: LogRow) -> str:
        """What follows `frames.event_head` in the frame of this event."""
        state, text = self._kept.get(row.position, (b"", ""))
        if state is not row.state:  # nobody had it yet, or not in the version that is wanted here
            text = frames.event_rest(row.position, row.public_bytes(self._log_id))
            self._kept_bytes += len(text)
            if self._kept_bytes > _KEPT_BYTES:
                # Whoever shares an event with others takes it at about the same time.
                self._kept, self._kept_bytes = {}, len(text)
            self._kept[row.position] = row.state, text
        return text
