"""The engine's part of an attempt's trace, told on its pipe and recorded here."""

from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode

from qlora_engine.updates import SpanBegan, SpanEnded, Update

_MOST_DEEP = 32


class EngineSpans:
    """Records what one engine tells, inside of the present span; ends what the engine itself did not."""

    def __init__(self, pid: int) -> None:
        self._tracer = trace.get_tracer("qlora_engine")
        self._pid = pid
        self._open: list[Span] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        while self._open:
            span = self._open.pop()
            span.set_status(Status(StatusCode.ERROR, "the engine ended in the middle of this"))
            span.end()

    def follow(self, update: Update) -> bool:
        """Whether the update was about spans."""
        match update:
            case SpanBegan() if len(self._open) < _MOST_DEEP:
                inside = self._open[-1] if self._open else trace.get_current_span()
                self._open.append(self._begin(update, trace.set_span_in_context(inside)))
            case SpanEnded() if self._open:
                span = self._open.pop()
                span.set_attributes({f"kinora.{name}": value for name, value in update.facts.items()})
                if update.error is not None:
                    span.set_attribute("error.type", update.error)
                    span.set_status(Status(StatusCode.ERROR))
                span.end(update.at_ns)
            case SpanBegan() | SpanEnded():
                pass
            case _:
                return False
        return True

    def _begin(self, update: SpanBegan, inside: Context) -> Span:
        attributes = {f"kinora.{name}": value for name, value in update.facts.items()}
        return self._tracer.start_span(
            update.name,
            inside,
            attributes={**attributes, "process.pid": self._pid},
            start_time=update.at_ns,
        )
