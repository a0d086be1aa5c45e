"""Opens and resolves findings: an event on the log, a line in the log file, and a metric."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from psycopg import AsyncConnection, errors

from command_api import metrics
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus
from projections.views.findings import findings
from schemas.commands.finding import OpenFinding, ResolveFinding
from schemas.events.finding import Check
from schemas.ids import Prefix, derived_id

_NAMESPACE = "fnd_" + "0" * 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a finding is about. The same subject is always the same finding."""

    check: Check
    name: str
    """Of the stream or view."""
    about: str
    """The id of a stream of the log, or of the log."""

    @property
    def finding_id(self) -> str:
        return derived_id(Prefix.FINDING, _NAMESPACE, f"{self.check}\n{self.name}\n{self.about}")


@dataclass
class Findings:
    """Those that are open, as this process knows them. Whether one is, the log alone decides."""

    bus: CommandBus
    checks: tuple[Check, ...]
    """Those that this process makes."""
    _open: dict[str, Subject] = field(default_factory=dict)
    _resolved: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)
    """Opened by this process. What the read model shows as open may have been resolved since."""

    @property
    def open(self) -> tuple[Subject, ...]:
        return tuple(self._open.values())

    async def learn(self, connection: AsyncConnection[Any]) -> None:
        """Take over what the read model says is open, such as what a former process found."""
        try:
            shown = await findings(connection, status="open", limit=1000)
        except (errors.UndefinedTable, errors.UndefinedColumn):
            return  # its read model is not made yet
        for each in shown:
            if each.check in self.checks and each.id not in self._resolved:
                self._open.setdefault(each.id, Subject(each.check, each.subject, each.about))
        self._show()

    async def found(self, subject: Subject, detail: str, remedy: str, organization_id: str | None) -> None:
        """Something differs."""
        if subject.finding_id in self._told:
            return
        logger.error("audit: %s of %s: %s; %s", subject.name, subject.about, detail, remedy)
        self._open[subject.finding_id] = subject
        self._resolved.discard(subject.finding_id)
        self._show()
        command = OpenFinding(
            finding_id=subject.finding_id,
            check=subject.check,
            subject=subject.name,
            about=subject.about,
            detail=detail,
            remedy=remedy,
        )
        await self.bus.execute(command, Context.system("auditor", organization_id=organization_id))
        self._told.add(subject.finding_id)

    async def healed(self, subject: Subject, detail: str) -> None:
        """It was looked at again, and agrees."""
        if subject.finding_id not in self._open:
            return
        command = ResolveFinding(finding_id=subject.finding_id, detail=detail)
        await self.bus.execute(command, Context.system("auditor"))
        logger.info("audit: %s of %s: as it should be again: %s", subject.name, subject.about, detail)
        del self._open[subject.finding_id]
        self._resolved.add(subject.finding_id)
        self._told.discard(subject.finding_id)
        self._show()

    def _show(self) -> None:
        """Also those that are 0 now, so that graphs and alarms come down."""
        counted: Counter[tuple[str, str]] = Counter(
            (subject.check, subject.name) for subject in self._open.values()
        )
        for sample in next(iter(metrics.AUDIT_FINDINGS.collect())).samples:
            counted.setdefault((sample.labels["check"], sample.labels["subject"]), 0)
        for (check, name), number in counted.items():
            metrics.AUDIT_FINDINGS.labels(check, name).set(number)
