"""An organization's events as one download: a line each, the stored bytes with their place in front."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from projections.reader import LogReader

MEDIA_TYPE = "application/x-ndjson"
_PAGE = 2000
_PAGE_BYTES = 2 * 2**20


@dataclass(frozen=True, slots=True)
class Export:
    """Events behind `after`, up to and with `until`. What is committed later is not in it."""

    reader: LogReader
    log_id: str
    organization_id: str
    after: int
    until: int

    async def headers(self) -> dict[str, str]:
        """By these a reader knows whether everything has arrived: the last line is the last position's.

        The last position is `after` when there are no events between the two.
        """
        last = await self.reader.last(self.organization_id, self.until)
        return {
            "X-Kinora-Log-Id": self.log_id,
            "X-Kinora-Until": str(self.until),
            "X-Kinora-Last-Position": str(max(last, self.after)),
            "Content-Disposition": f'attachment; filename="events-{self.after}-{self.until}.ndjson"',
        }

    async def lines(self) -> AsyncIterator[bytes]:
        """Chunks of whole lines; memory is one page."""
        position = self.after
        while rows := await self.reader.page(
            position,
            _PAGE,
            organization_id=self.organization_id,
            until=self.until,
            max_bytes=_PAGE_BYTES,
        ):
            yield b"".join(row.public_bytes(self.log_id) + b"\n" for row in rows)
            position = rows[-1].position
