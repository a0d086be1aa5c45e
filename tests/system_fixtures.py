"""One `kinora up`, one tiny base model and one sample data set, shared by acceptance and fault tests."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.service import Service, running_service

LEASE_SECONDS = 10
SILENCE_SECONDS = 20
"""Longer than an engine takes to start on a busy machine."""
PRETRAINING_STEPS = 60
"""Enough that answers are words that end; how much a training learns is for the demo to show."""


@dataclass(frozen=True)
class Samples:
    """Folders with real clips and a real tiny checkpoint."""

    clips: Path
    model: Path


def make_samples(folder: Path, *, clips: int, pretraining_steps: int) -> Samples:
    """By the engine's own code in a process of its own, because no other process of tests imports torch."""
    made = Samples(folder / "clips", folder / "model")
    code = (
        "import sys; from qlora_engine.data.shapes import make_sample_dataset;"
        " from qlora_engine.models.tiny import make_tiny_model;"
        f" make_sample_dataset(sys.argv[1], clips={clips});"
        f" make_tiny_model(sys.argv[2], steps={pretraining_steps})"
    )
    subprocess.run([sys.executable, "-c", code, str(made.clips), str(made.model)], check=True)
    return made


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder = tmp_path_factory.mktemp("samples")
    return make_samples(folder, clips=60, pretraining_steps=PRETRAINING_STEPS)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
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
    with running_service(tmp_path_factory.mktemp("up"), settings) as running:
        yield running


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
