"""Sets OpenTelemetry up in this process; everything else only uses its API and never notices a collector.

Without an endpoint spans are not recorded, but traces still have ids: they stand in log lines and events,
so that one request can be followed through every role's log without any collector.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

from kinora.settings import TelemetrySettings

_QUEUED_SPANS = 4096
"""What a collector that is away may cost in memory; newer spans are dropped then."""
_EXPORT_EVERY_MILLISECONDS = 1000
_FLUSH_SECONDS = 3.0


@contextmanager
def exported_traces(role: str, settings: TelemetrySettings) -> Iterator[None]:
    """Name and export the spans of the block; once per process.

    Exports run on a thread of their own. At the end the rest is sent, for a few seconds at most.
    """
    resource = Resource(
        {
            **settings.resource,
            "service.namespace": "kinora",
            "service.name": f"kinora-{role}",
            "service.version": version("kinora"),
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    )
    if settings.endpoint is None:
        trace.set_tracer_provider(
            TracerProvider(sampler=ALWAYS_OFF, resource=resource, shutdown_on_exit=False)
        )
        yield
        return
    exporter = OTLPSpanExporter(
        endpoint=settings.endpoint,
        headers={name: secret.get_secret_value() for name, secret in settings.headers.items()},
        timeout=settings.timeout_seconds,
    )
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        resource=resource,
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=_QUEUED_SPANS,
            max_export_batch_size=512,
            schedule_delay_millis=_EXPORT_EVERY_MILLISECONDS,
        )
    )
    trace.set_tracer_provider(provider)
    # A collector that is away says so every second; once in a while is enough.
    logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").addFilter(_Seldom())
    try:
        yield
    finally:
        _shut_down(provider)


def _shut_down(provider: TracerProvider) -> None:
    # The library's own shutdown waits as long as its exporter likes to; a stop does not.
    ending = threading.Thread(target=provider.shutdown, name="traces-shutdown", daemon=True)
    ending.start()
    ending.join(_FLUSH_SECONDS)


class _Seldom(logging.Filter):
    """Lets the first of many lines pass, and then one in sixty."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self._seen += 1
        return self._seen % 60 == 1
