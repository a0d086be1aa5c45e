"""One tiny model and one set of clips for all engine tests, made once per run, for all workers."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as `import_less` does for engines

from qlora_engine.data.frames import Frames
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.shapes import make_sample_dataset
from qlora_engine.data.validation import validate_dataset
from qlora_engine.models.families.base import Vision
from qlora_engine.models.tiny import make_tiny_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import read_manifest
from qlora_engine.updates import Update
from schemas.training import DatasetValidationSpec, Hyperparameters, ResumePoint, TrainingSpec
from tests.shared import made_once

PRETRAINING_STEPS = 250
CLIPS = 80

THIRD_PARTY = (
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:builtin type .* has no __module__ attribute:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for ignored in THIRD_PARTY:
            item.add_marker(pytest.mark.filterwarnings(ignored))


@dataclass
class Recorded:
    """What an engine said."""

    updates: list[Update] = field(default_factory=list)

    def __call__(self, update: Update) -> None:
        self.updates.append(update)

    def of(self, kind: str) -> list[Any]:
        return [update for update in self.updates if update.kind == kind]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model, less pre-trained than the demo's."""
    return made_once(tmp_path_factory, "tiny", partial(make_tiny_model, steps=PRETRAINING_STEPS))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder."""
    return made_once(tmp_path_factory, "clips", partial(make_sample_dataset, clips=CLIPS))


@pytest.fixture(scope="session")
def manifest_file(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest that the engine's own validation made of `clips`."""
    output = tmp_path_factory.mktemp("validated")
    verdict = validate_dataset(
        DatasetValidationSpec(dataset_folder=str(clips), output_folder=str(output)), lambda _: None
    )
    assert verdict.problems == ()
    assert verdict.manifest_file is not None
    return Path(verdict.manifest_file)


def frames_of(clips: Path, manifest_file: Path, vision: Vision | None) -> Frames:
    """Four frames of each clip, decoded in this process."""
    return Frames(clips, read_manifest(manifest_file).clips, Sampling(frames=4), vision)


@pytest.fixture(scope="session")
def frame_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames that all trainings of a run share."""
    return tmp_path_factory.mktemp("frames")


MakeSpec = Callable[..., TrainingSpec]


@pytest.fixture
def make_spec(tiny: Path, clips: Path, manifest_file: Path, frame_cache: Path, tmp_path: Path) -> MakeSpec:
    """A training spec; keyword arguments are hyperparameters."""

    def make(output: str = "out", resume: ResumePoint | None = None, **hyperparameters: Any) -> TrainingSpec:
        chosen: dict[str, Any] = {
            "learning_rate": 5e-3,
            "batch_size": 8,
            "max_steps": 6,
            "max_new_tokens": 8,
            "checkpoint_every_steps": 3,
        } | hyperparameters
        return TrainingSpec(
            job_id=f"job_{'0' * 32}",
            attempt=1,
            hyperparameters=Hyperparameters(**chosen),
            model_folder=str(tiny),
            dataset_folder=str(clips),
            manifest_file=str(manifest_file),
            output_folder=str(tmp_path / output),
            frame_cache_folder=str(frame_cache),
            resume=resume,
            threads=2,
        )

    return make


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def no_stop() -> StopWish:
    return StopWish()
