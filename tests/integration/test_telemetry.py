"""A collector of traces that is away, or listens and never answers, disturbs nobody."""

import socket
import subprocess
import sys

import pytest

from kinora.telemetry import _FLUSH_SECONDS

# In a process of its own: OpenTelemetry's provider is set once per process.
PROGRAM = """
import sys, time
from opentelemetry import trace
from kinora.logs import configure_logging
from kinora.settings import telemetry_settings
from kinora.telemetry import exported_traces

configure_logging("agent")
patient = {"OTEL_EXPORTER_OTLP_ENDPOINT": sys.argv[1], "OTEL_EXPORTER_OTLP_TIMEOUT": "50000"}
settings = telemetry_settings(patient)
with exported_traces("agent", settings):
    tracer = trace.get_tracer("job")
    began = time.perf_counter()
    for _ in range(20_000):  # more than are queued
        with tracer.start_as_current_span("step"):
            pass
    worked = time.perf_counter() - began
    left = time.perf_counter()
print(worked, time.perf_counter() - left, flush=True)
"""


@pytest.mark.parametrize("listens", [False, True], ids=["closed", "silent"])
def test_work_goes_on_and_the_end_is_bounded(listens: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as collector:
        port = collector.getsockname()[1]
        if not listens:
            collector.close()
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, f"http://127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    worked, ended = map(float, done.stdout.split())
    assert ended < _FLUSH_SECONDS + 5
    assert worked < 30
    assert len(done.stderr.splitlines()) < 20, done.stderr
