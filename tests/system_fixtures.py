"""One `kinora up`, one tiny base model and one sample data set, shared by acceptance and fault tests."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from qlora_engine.data.shapes import make_sample_dataset
from tests.service import Service, running_service
from tests.shared import made_once

LEASE_SECONDS = 10
SILENCE_SECONDS = 20
"""Longer than an engine takes to start on a busy machine."""
PRETRAINING_STEPS = 60
"""Enough that answers are words that end; how much a training learns is for the demo to show."""

SHARED = pytest.StashKey[ExitStack]()
"""Ends the shared service."""


@dataclass(frozen=True)
class Samples:
    """Folders with real clips and a real tiny checkpoint."""

    clips: Path
    model: Path


def _make_model(folder: Path) -> None:
    """By the engine's own code in a process of its own, because these tests do without torch."""
    code = (
        "import sys; from qlora_engine.models.tiny import make_tiny_model;"
        f" make_tiny_model(sys.argv[1], steps={PRETRAINING_STEPS})"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def make_samples(paths: pytest.TempPathFactory, *, clips: int) -> Samples:
    """The one model of the run, and so many clips."""
    return Samples(
        clips=made_once(paths, f"sample-clips-{clips}", partial(make_sample_dataset, clips=clips)),
        model=made_once(paths, "sample-model", _make_model),
    )


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return make_samples(tmp_path_factory, clips=60)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Service]:
    # Short leases and little patience with engines, so that tests need not wait for either.
    webhooks = {"allowed_networks": ["127.0.0.0/8"]}
    settings = {
        "api": {"webhooks": webhooks},
        "orchestrator": {
            "lease_seconds": LEASE_SECONDS,
            "heartbeat_seconds": 1,
            "audit_head_seconds": 1,
            "webhooks": webhooks,
        },
        "agent": {"engine_silence_seconds": SILENCE_SECONDS},
    }
    with ExitStack() as stack:
        pytestconfig.stash[SHARED] = stack
        yield stack.enter_context(running_service(tmp_path_factory.mktemp("up"), settings))


@dataclass(frozen=True)
class Registered:
    """Ids of the validated samples."""

    dataset_id: str
    model_id: str


@pytest.fixture(scope="session")
def registered(service: Service, samples: Samples) -> Registered:
    dataset = service.cli("datasets", "add", str(samples.clips), "--name", "shapes")
    model = service.cli("models", "add", str(samples.model), "--name", "tiny")
    return Registered(dataset.stdout.strip(), model.stdout.strip())
