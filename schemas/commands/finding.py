"""What the auditor asks to have recorded."""

from typing import ClassVar

from schemas.commands.base import Command
from schemas.events.finding import Check
from schemas.ids import FindingId


class OpenFinding(Command):
    """Something derived differs from the log; while the finding is open a repeat changes nothing."""

    TYPE: ClassVar[str] = "open_finding"
    finding_id: FindingId
    check: Check
    subject: str
    about: str
    detail: str
    remedy: str


class ResolveFinding(Command):
    """It agrees again; nothing happens to a finding that is not open."""

    TYPE: ClassVar[str] = "resolve_finding"
    finding_id: FindingId
    detail: str
