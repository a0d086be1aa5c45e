"""Tells of a log that is not what it was: as findings, beside those of the auditor, and in the logs."""

import logging
from collections import defaultdict

from psycopg import AsyncConnection

from command_api.audit.findings import Findings, Subject
from command_api.metrics import MERKLE_FAULTS
from command_api.transparency.errors import LogContradicted
from command_api.transparency.recheck import Fault, Rechecked
from schemas.heads import NOBODY

logger = logging.getLogger(__name__)

HEADS, LEAVES = "heads", "leaves"
_REMEDY = "restore the log from a backup, and find out who changed it"


class Alarm:
    """Opens a finding per organization, and one for all of the log where no head can be signed any more."""

    def __init__(self, findings: Findings, log_id: str) -> None:
        self._findings = findings
        self._log_id = log_id
        self._faulty: set[str] | None = None
        """Whose events differed in this round; None until one began at the beginning."""

    async def contradicted(self, error: LogContradicted) -> None:
        """Nothing is signed from now on."""
        await self._findings.found(self._subject(HEADS, self._log_id), error.message, _REMEDY, None)

    async def agrees(self, connection: AsyncConnection) -> None:
        """The trees are level with the log, and are what was signed."""
        await self._findings.learn(connection)
        await self._findings.healed(
            self._subject(HEADS, self._log_id), "every tree is again what the heads say"
        )

    async def rechecked(self, page: Rechecked) -> None:
        """A page of the log was compared with the leaves."""
        by_organization: defaultdict[str, list[Fault]] = defaultdict(list)
        for fault in page.faults:
            MERKLE_FAULTS.labels(fault.how).inc()
            logger.error("keeper: %s since it joined its tree", fault)
            by_organization[fault.organization].append(fault)
        for organization, faults in by_organization.items():
            more = f", and {len(faults) - 1} more near it" if len(faults) > 1 else ""
            await self._findings.found(
                self._subject(LEAVES, self._about(organization)),
                f"{faults[0]} since it joined its tree{more}",
                _REMEDY,
                None if organization == NOBODY else organization,
            )
        if self._faulty is not None:
            self._faulty |= {self._about(organization) for organization in by_organization}
        if page.last:
            await self._end_round()

    async def _end_round(self) -> None:
        if self._faulty is not None:
            for subject in self._findings.open:
                if subject.name == LEAVES and subject.about not in self._faulty:
                    await self._findings.healed(subject, "all of its events are again what they were")
        self._faulty = set()

    def _about(self, organization: str) -> str:
        return self._log_id if organization == NOBODY else organization

    def _subject(self, name: str, about: str) -> Subject:
        return Subject("log", name, about)
