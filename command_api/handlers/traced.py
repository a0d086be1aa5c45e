"""One command as traces and metrics see it: from being handed in to its answer, commit included."""

from dataclasses import dataclass, replace
from typing import Self

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from command_api.domain.errors import Refused
from command_api.handlers.base import Context
from command_api.handlers.deciding import Answer, Outcome
from command_api.metrics import COMMANDS
from command_api.tracing import continued, traceparent_of
from schemas.commands import Command

_tracer = trace.get_tracer(__name__)


@dataclass(frozen=True, slots=True)
class Traced:
    """A command and its span; the events that come of it name the span as the one they follow from."""

    command: Command
    context: Context
    span: Span

    @classmethod
    def begin(cls, command: Command, context: Context) -> Self:
        name = type(command).__name__
        span = _tracer.start_span(
            f"command {name}", continued(context.traceparent), attributes={"kinora.command": name}
        )
        follows = traceparent_of(span)
        return cls(command, replace(context, traceparent=follows) if follows else context, span)

    def end(self, answer: Answer | BaseException) -> None:
        """Say what became of it."""
        match answer:
            case Outcome():
                outcome = "replayed" if answer.replayed else "done"
                self.span.set_attribute("kinora.position", answer.position)
            case Refused():
                outcome = "refused"
                self.span.set_attribute("error.type", answer.code)
            case _:
                outcome = "failed"
                self.span.set_attribute("error.type", type(answer).__name__)
                self.span.set_status(Status(StatusCode.ERROR, str(answer)))
        self.span.set_attribute("kinora.outcome", outcome)
        self.span.end()
        COMMANDS.labels(type(self.command).__name__, outcome).inc()
