"""The same training as on the CPU, on a CUDA device."""

from pathlib import Path

import pytest
import torch

from qlora_engine.data.shapes import make_sample_dataset
from qlora_engine.data.validation import validate_dataset
from qlora_engine.models.tiny import make_tiny_model
from qlora_engine.models.validation import validate_model
from qlora_engine.probe import four_bit_step
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import train
from qlora_engine.updates import Update
from schemas.training import (
    DatasetValidationSpec,
    Hyperparameters,
    ModelValidationSpec,
    ResumePoint,
    TrainingSpec,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.timeout(600),
]


def test_training_and_resuming_on_cuda(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    assert four_bit_step(device)
    model = make_tiny_model(tmp_path / "model")
    clips = make_sample_dataset(tmp_path / "clips")
    validation = DatasetValidationSpec(dataset_folder=str(clips), output_folder=str(tmp_path / "judged"))
    verdict = validate_dataset(validation, lambda _: None)
    assert verdict.manifest_file is not None
    assert validate_model(ModelValidationSpec(model_folder=str(model)), lambda _: None).facts is not None

    def run(output: str, resume: ResumePoint | None = None) -> dict[str, list[Update]]:
        said: dict[str, list[Update]] = {}
        spec = TrainingSpec(
            job_id=f"job_{'0' * 32}",
            attempt=1,
            hyperparameters=Hyperparameters(
                learning_rate=5e-3,
                batch_size=32,
                max_steps=160,
                micro_batch_size=16,
                checkpoint_every_steps=80,
            ),
            model_folder=str(model),
            dataset_folder=str(clips),
            manifest_file=verdict.manifest_file or "",
            output_folder=str(tmp_path / output),
            resume=resume,
        )
        train(spec, lambda update: said.setdefault(update.kind, []).append(update), StopWish(), device)
        return said

    whole = run("whole")
    before, after = whole["evaluation_done"]
    assert before.evaluation.exact_match == 0  # type: ignore[union-attr]
    assert after.evaluation.exact_match > 0.7  # type: ignore[union-attr]
    assert "NVIDIA" in whole["training_began"][0].device  # type: ignore[union-attr]

    resumed = run("resumed", ResumePoint(step=80, folder=str(tmp_path / "whole" / "checkpoint-80")))
    assert len(resumed["step_taken"]) == 80
    assert resumed["evaluation_done"][-1].evaluation.exact_match > 0.7  # type: ignore[union-attr]
