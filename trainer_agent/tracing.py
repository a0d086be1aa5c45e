"""Where a span continues a trace that came by message: W3C trace context, as `traceparent` carries it."""

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def continued(traceparent: str | None) -> Context | None:
    """The context to begin a span in; without a (well-formed) parent the present one."""
    return None if traceparent is None else _PROPAGATOR.extract({"traceparent": traceparent})


def traceparent_of(span: Span) -> str | None:
    """What to send along so that others continue `span`; None when there is no trace at all."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier.get("traceparent")
