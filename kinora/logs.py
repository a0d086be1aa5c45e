"""One JSON object per log line on stderr, whether it comes from structlog or from the standard library.

What a line belongs to (request, job, attempt, agent, organization) is bound in structlog's context
variables by whoever knows it, and the trace by the current span; every line below carries it.
"""

import logging
import sys
from collections.abc import Iterable
from types import TracebackType

import structlog
from opentelemetry import trace
from structlog.types import EventDict, Processor

from kinora.redaction import redactor

_TALKATIVE = (
    *("httpx", "httpcore", "botocore", "aiobotocore", "boto3", "psycopg.pool", "faststream", "urllib3"),
    "uvicorn.access",  # the API logs its requests itself, without their queries
)


def configure_logging(role: str, *, secrets: Iterable[str] = (), level: int = logging.INFO) -> None:
    """Set up logging of this process, once, before anything logs; `secrets` never appear in a line."""
    redact = redactor(secrets)

    def name_role(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["role"] = role
        return event

    def without_secrets(_logger: object, _method: str, line: str) -> str:
        return redact(line)

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_role,
        name_trace,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
                without_secrets,  # type: ignore[list-item]  # behind the renderer there is only text
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_the_end


def name_trace(_logger: object, _method: str, event: EventDict) -> EventDict:
    """The ids of the span in which the line was written."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event.setdefault("trace_id", trace.format_trace_id(context.trace_id))
        event.setdefault("span_id", trace.format_span_id(context.span_id))
    return event


def _log_the_end(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """What ends the process is a line of JSON, too, and passes the same net."""
    logging.getLogger("kinora").critical("crashed", exc_info=(kind, error, where))
