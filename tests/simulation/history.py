"""What was asked, answered and seen in a simulation, for the judge."""

from dataclasses import dataclass, field

from command_api.handlers.base import Context
from schemas.commands import Command
from schemas.work import ReportBody


@dataclass
class Asked:
    """One client's request, asked until it was answered."""

    command: Command
    context: Context
    answers: list[tuple[int, tuple[str, ...], bool]] = field(default_factory=list)
    """Position, event ids, and whether it was told as a repeat."""
    answered_at: list[float] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    refused_at: list[float] = field(default_factory=list)
    """When each question that was refused had been asked."""
    errors: list[str] = field(default_factory=list)
    unanswered: int = 0
    conflicts: int = 0
    """How often it was told that somebody else was faster."""

    @property
    def settled(self) -> bool:
        return bool(self.answers or self.refusals or self.errors)

    @property
    def key(self) -> tuple[str, str]:
        assert self.context.idempotency is not None
        return self.context.idempotency.principal, self.context.idempotency.key


@dataclass
class Reported:
    """One report of an agent."""

    job_id: str
    attempt: int
    sequence: int
    agent_id: str
    body: ReportBody
    acknowledged_at: float | None = None
    """When JetStream said that it has it."""

    @property
    def acknowledged(self) -> bool:
        return self.acknowledged_at is not None


@dataclass
class Told:
    """What one client of the feed received, frame by frame."""

    client: str
    positions: list[int] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    """Why it was told that positions mean nothing any more."""
