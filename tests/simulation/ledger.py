"""The simulation's own view: per job, every event that it was folded from, in order."""

from collections.abc import Sequence
from typing import ClassVar, LiteralString

from projections.documents import Document, DocumentView, document_table
from projections.view import Census, Table
from schemas.envelope import Recorded
from schemas.events import REGISTRY
from tests.unit.domain.samples import ORGANIZATION, WORKSPACE


class Entry(Document):
    """What a job's stream came to; a repeated or a missing event shows."""

    seen: tuple[int, ...] = ()
    """Positions."""


class Poison:
    """Streams of which the view cannot fold one event until somebody mends it; others would be fine."""

    def __init__(self) -> None:
        self.streams: set[str] = set()
        self._bad: dict[str, int] = {}

    def spoils(self, recorded: Recorded) -> bool:
        if recorded.stream_id not in self.streams:
            return False
        return self._bad.setdefault(recorded.stream_id, recorded.position) == recorded.position


class Ledger(DocumentView[Entry]):
    """Real machinery, a fold that hides nothing."""

    name: ClassVar[str] = "ledger"
    tables: ClassVar[Sequence[Table]] = (document_table("ledger"),)
    types: ClassVar[tuple[str, ...]] = tuple(
        one.TYPE for one in REGISTRY.types if one.TYPE.startswith("kinora.job.")
    )
    census: ClassVar[Census] = (("ledger", types),)
    table: ClassVar[LiteralString] = "ledger"
    model: ClassVar[type[Document]] = Entry

    def __init__(self, poison: Poison, version: int = 1) -> None:
        self.version = version  # type: ignore[misc]
        self._poison = poison

    def fold(self, before: Entry | None, recorded: Recorded) -> Entry:
        if self._poison.spoils(recorded):
            raise ValueError("the simulation's poison")
        at, metadata = recorded.metadata.recorded_at, recorded.metadata
        if before is None:
            return Entry(
                id=recorded.stream_id,
                organization_id=metadata.organization_id or ORGANIZATION,
                workspace_id=metadata.workspace_id or WORKSPACE,
                status=f"v{self.version}",
                created_at=at,
                updated_at=at,
                version=recorded.version,
                last_position=recorded.position,
                seen=(recorded.position,),
            )
        return before.model_copy(
            update={
                "updated_at": at,
                "version": recorded.version,
                "last_position": recorded.position,
                "status": f"v{self.version}",
                "seen": (*before.seen, recorded.position),
            }
        )
