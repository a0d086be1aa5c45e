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


@dataclass(frozen=True)
class Samples:
    """Folders with real clips and a real tiny checkpoint."""

    clips: Path
    model: Path


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder = tmp_path_factory.mktemp("samples")
    subprocess.run(
        [sys.executable, "-m", "qlora_engine.data.shapes", str(folder / "clips"), "--clips", "60"], check=True
    )
    subprocess.run([sys.executable, "-m", "qlora_engine.models.tiny", str(folder / "model")], check=True)
    return Samples(folder / "clips", folder / "model")


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
