"""Deletes what nobody needs: looks at every object, judges it, and judges it again right before it goes.

The second look is under the lock that uploads pass through (`command_api.keeping`). Whoever comes to need
an object says so in the log first and passes the lock then: either this reads the log after that, and spares
the object, or it is done before, and the other one sees that the object is gone and sends it again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime

from command_api.connected import connected
from command_api.eventlog.log import EventLog
from command_api.objects import Entry, ObjectStore, ObjectStoreUnavailable
from command_api.storage.alone import alone
from command_api.storage.ledger import Ledger, ListingLost
from command_api.storage.outcome import Tally
from command_api.storage.places import place_of
from command_api.storage.verdict import may_go
from schemas.ids import ID_PATTERN, Prefix

logger = logging.getLogger(__name__)

PAGE_DELETIONS = 200
"""Deleted under one lock: uploads wait meanwhile, for about a second."""
AT_ONCE = 16
_STORE_AWAY_SECONDS = 1.0
_LAST_SECONDS = 5.0
"""For the deletions at hand, when the process is to end."""

UPLOADS = "SELECT upload_id FROM kinora_uploads WHERE organization_id = %s"


class Collector:
    """One run. What was written or let go of since `before`, when the grace period began, stays."""

    def __init__(self, log: EventLog, store: ObjectStore, conninfo: str, before: datetime) -> None:
        self._log = log
        self._store = store
        self._conninfo = conninfo
        # The store tells the time of a single object in whole seconds.
        self._before = before.replace(microsecond=0)

    def ledger(self, organization_id: str) -> Ledger:
        """An organization's, not read yet."""
        return Ledger(self._log, self._store, organization_id, self._before)

    async def collect(self, tally: Tally, *, dry_run: bool) -> None:
        """Go through all organizations. A dry run deletes nothing.

        Raises:
            ObjectsBusy: when a backup is running.
            LogUnavailable, ObjectStoreUnavailable: when log or store do not answer.
        """
        for folder in await self._store.top_folders():
            match = ID_PATTERN.match(folder)
            if match is None or match.group(1) != Prefix.ORGANIZATION:
                continue  # not ours to judge
            try:
                await self._organization(folder, self.ledger(folder), tally, dry_run)
            except ListingLost as error:
                logger.warning("collection: nothing of %s goes: %s", folder, error)
                tally.passed_over(folder, error.message)

    async def find(self, organization_id: str, ledger: Ledger, tally: Tally) -> AsyncIterator[Entry]:
        """What may go by what is known now."""
        known = await ledger.read(await self._uploads(organization_id))
        async for entry in self._store.entries(f"{organization_id}/"):
            tally.saw(organization_id, place_of(entry.key).purpose, entry.size_bytes)
            if may_go(entry, known) is not None:
                yield entry

    async def delete(
        self, organization_id: str, ledger: Ledger, found: Sequence[Entry], tally: Tally
    ) -> None:
        """Delete those of `found` that may still go; nobody else begins to need one of them meanwhile."""
        deletion = asyncio.create_task(self._delete(organization_id, ledger, found, tally))
        try:
            await asyncio.shield(deletion)
        except asyncio.CancelledError:
            # The lock is not let go of with requests on their way to the store, however often asked to.
            last = asyncio.get_running_loop().time() + _LAST_SECONDS
            while not deletion.done() and (left := last - asyncio.get_running_loop().time()) > 0:
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({deletion}, timeout=left)
            deletion.cancel()
            raise

    async def _delete(
        self, organization_id: str, ledger: Ledger, found: Sequence[Entry], tally: Tally
    ) -> None:
        async with alone(self._conninfo):
            known = await ledger.read(await self._uploads(organization_id))
            gate = asyncio.Semaphore(AT_ONCE)

            async def judge_and_delete(entry: Entry) -> None:
                async with gate:
                    current = await self._store.entry(entry.key)
                    purpose = may_go(current, known) if current is not None else None
                    if current is None or purpose is None:
                        tally.spared += 1
                        return
                    await self._store.delete(entry.key)
                    tally.gone(entry.key, purpose, current.size_bytes)

            results = await asyncio.gather(*map(judge_and_delete, found), return_exceptions=True)
            problems = [each for each in results if isinstance(each, BaseException)]
            if problems:
                # A deletion without an answer may still happen: nobody may rely on these objects before.
                await self._until_it_answers()
                raise problems[0]

    async def _organization(self, organization_id: str, ledger: Ledger, tally: Tally, dry_run: bool) -> None:
        page: list[Entry] = []
        async for entry in self.find(organization_id, ledger, tally):
            if dry_run:
                tally.gone(entry.key, place_of(entry.key).purpose, entry.size_bytes)
                continue
            page.append(entry)
            if len(page) == PAGE_DELETIONS:
                await self.delete(organization_id, ledger, page, tally)
                page = []
        if page:
            await self.delete(organization_id, ledger, page, tally)

    async def _uploads(self, organization_id: str) -> frozenset[str]:
        async with connected(self._conninfo, connect_timeout=5) as connection:
            cursor = await connection.execute(UPLOADS, (organization_id,))
            return frozenset([str(row[0]) for row in await cursor.fetchall()])

    async def _until_it_answers(self) -> None:
        while True:
            try:
                await self._store.check()
            except ObjectStoreUnavailable as error:
                logger.warning("collection: waits for the object store: %s", error)
                await asyncio.sleep(_STORE_AWAY_SECONDS)
            else:
                return
