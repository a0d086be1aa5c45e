"""Another machine that rebuilds the view for new code, in one transaction, as seen by the database alone.

How a rebuild fills and checks its tables, on several cores, is tested on a real server. What matters here is
what the running projection does before, during and after the swap.
"""

from typing import TYPE_CHECKING, Any
from zlib import crc32

from projections.documents import document_row
from projections.rebuild import LOCK_CLASS
from projections.view import active_schema
from schemas.envelope import Recorded
from tests.simulation.ledger import Entry, Ledger
from tests.simulation.postgres import statements
from tests.simulation.postgres.engine import EventsTable, Session
from tests.simulation.scheduler import NOWHERE, current_strand

if TYPE_CHECKING:
    from tests.simulation.world import World


class Rebuilder:
    """Holds the lock of the view's rebuild for good, so that nobody else begins one."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def lock(self) -> None:
        key = crc32(b"ledger") - 2**31
        self._world.postgres.advisory["advisory", LOCK_CLASS, key] = Session(self._world.postgres)

    def begin(self, version: int, after_seconds: float) -> None:
        """Swap tables of `version` in after a while."""
        self._world.loop.strand(lambda: self._build(version, after_seconds), NOWHERE)

    def _build(self, version: int, seconds: float) -> None:
        while True:
            current_strand().block(seconds)
            seconds = 1.0
            if version != self._world.view_version:
                return
            if not self._world.postgres.up or self._world.poison.streams:
                continue
            if self._swap(version):
                self._world.loop.note(f"the view was rebuilt as version {version}")
                return

    def _swap(self, version: int) -> bool:
        session = Session(self._world.postgres)
        session.begin()
        transaction = session.transaction
        assert transaction is not None
        before = transaction.get(statements.VIEWS, "ledger")
        if before is None:
            session.end()
            return False
        transaction.lock_row(statements.VIEWS, "ledger")
        before = transaction.get(statements.VIEWS, "ledger")
        assert before is not None
        rows, head = self._fold(version)
        number = self._world.postgres.next_value("oid")
        schema = active_schema("ledger")
        transaction.lock_row(statements.SCHEMAS, schema)
        transaction.put(statements.SCHEMAS, schema, {"id": number, "tables": ("ledger",)})
        for row in rows:
            transaction.put(f"{number}.ledger", row["id"], row)
        change = {"generation": before["generation"] + 1, "version": version, "position": head}
        transaction.put(statements.VIEWS, "ledger", {**before, **change})
        for parked in transaction.all(statements.PARKED):
            key = (parked["view"], parked["generation"], parked["stream_id"])
            transaction.put(statements.PARKED, key, None)
        for request in statements._open_rebuilds(transaction):
            transaction.put(statements.REBUILDS, request["id"], {**request, "state": "done"})
        alive = session.alive
        session.commit()
        session.end()
        return alive

    def _fold(self, version: int) -> tuple[list[dict[str, Any]], int]:
        events = self._world.postgres.table("kinora_events")
        assert isinstance(events, EventsTable)
        view = Ledger(self._world.poison, version)
        documents: dict[str, Entry] = {}
        for row in events.after(0):
            if row["topic"] in view.types:
                recorded = Recorded.from_state(row["notification_id"], row["state"])
                documents[recorded.stream_id] = view.fold(documents.get(recorded.stream_id), recorded)
        names = ("id", "organization_id", "status", "created_at", "document")
        rows = [dict(zip(names, document_row(one), strict=True)) for one in documents.values()]
        return rows, events.positions[-1] if events.positions else 0
