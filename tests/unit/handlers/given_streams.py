"""Streams as given events: what a handler reads, without a log behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from command_api.domain.aggregates import aggregate_of
from command_api.handlers.base import Changes, Context, Loaded
from command_api.handlers.registry import HANDLERS
from schemas.commands import Command
from schemas.events import Event
from tests.unit.domain.samples import ORGANIZATION, USER, WORKSPACE

CONTEXT = Context(
    actor=USER,
    organization_id=ORGANIZATION,
    workspace_id=WORKSPACE,
    request_id="req_1",
    correlation_id="req_1",
    causation_id="req_1",
)


@dataclass(frozen=True)
class GivenStreams:
    """Each stream's events, all of one organization but for those named in `foreign`."""

    events: Mapping[str, Sequence[Event]]
    foreign: Mapping[str, str] = field(default_factory=dict)

    def load(self, stream_id: str) -> Loaded:
        events = self.events.get(stream_id, ())
        state = aggregate_of(stream_id).fold(events)
        if not events:
            return Loaded(state, 0)
        return Loaded(state, len(events), self.foreign.get(stream_id, ORGANIZATION), WORKSPACE)

    def handle(self, command: Command, context: Context = CONTEXT) -> Changes:
        return HANDLERS[type(command)](command, context, self)
