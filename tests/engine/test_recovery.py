"""Whatever interrupts a training, whoever goes on ends with the same adapter, or learns why not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.recovery import Kill, adapter, attempt, context, survive
from qlora_engine.errors import CheckpointUnusable
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import train
from qlora_engine.training.checkpoints import Identity, _write_manifest
from schemas.training import CHECKPOINT_MISMATCH, Hyperparameters, ResumePoint
from tests.engine.conftest import CLIPS, MakeSpec, Recorded

CPU = torch.device("cpu")


@pytest.mark.slow_process
def test_a_training_killed_three_times_is_the_unbroken_one_byte_for_byte(make_spec: MakeSpec) -> None:
    """In the first epoch, during a save and in a later epoch."""
    chosen: dict[str, Any] = {
        "optimizer": "adamw_8bit",
        "rank": 64,
        "target_modalities": ("connector", "text"),
        "dropout": 0.1,
        "tokens_per_micro_batch": 600,
        "tokens_per_step": 1200,
        "max_steps": 9,
        "checkpoint_every_steps": 2,
        "held_out_fraction": 0.0,
        "rank_allocation": {"gate": False, "explore_ratio": 0.3, "floor_rank": 32},
    }
    processes = context()
    unbroken = make_spec("unbroken", **chosen)
    whole = attempt(processes, unbroken, None)
    taken = [update for update in whole.updates if update.kind == "step_taken"]
    assert taken[-1].epoch > 1
    (changed,) = [update for update in whole.updates if update.kind == "rank_changed"]
    assert any(layer.before != layer.after for layer in changed.layers)
    kills = [
        Kill("mid-epoch", after_step=2, delay=0.01),
        Kill("during a save", after_step=0, delay=0.0),
        Kill("later epoch", after_step=2, delay=0.02),
    ]
    spec = make_spec("killed", **chosen)
    own_frames = spec.model_copy(update={"frame_cache_folder": f"{spec.output_folder}-frames"})
    survived = survive(processes, own_frames, kills, adapter(Path(unbroken.output_folder)), CLIPS)
    assert survived.equal
    assert survived.kills == 3
    assert survived.decoded_again == 0


def test_a_stop_in_the_middle_of_an_evaluation_forgets_nothing(make_spec: MakeSpec) -> None:
    """The evaluation is made again on resuming, so early stopping decides as it would have."""
    chosen: dict[str, Any] = {
        "max_steps": 4,
        "checkpoint_every_steps": 4,
        "evaluate_every_steps": 2,
        "early_stopping_patience": 3,
        "held_out_fraction": 0.1,
        "max_new_tokens": 2,
        "micro_batch_size": 2,
    }
    whole, stopped, resumed = Recorded(), Recorded(), Recorded()
    unbroken, first = make_spec("unbroken", **chosen), make_spec("first", **chosen)
    train(unbroken, whole, StopWish(), CPU)
    stop = StopWish()

    def stopping(update: Any) -> None:
        stopped(update)
        evaluating = update.kind == "preparing" and update.phase == "evaluating"
        if evaluating and update.done and len(stopped.of("step_taken")) == 2:
            stop.ask("graceful")

    train(first, stopping, stop, CPU)
    assert stopped.of("training_stopped")[0].step == 2
    checkpoint = ResumePoint(step=2, folder=str(Path(first.output_folder, "checkpoint-2")))
    again = make_spec("again", checkpoint, **chosen)
    train(again, resumed, StopWish(), CPU)
    assert resumed.of("evaluation_done") == whole.of("evaluation_done")[1:]
    assert adapter(Path(again.output_folder)) == adapter(Path(unbroken.output_folder))


@pytest.fixture
def checkpoint(make_spec: MakeSpec) -> Path:
    spec = make_spec(max_steps=1, checkpoint_every_steps=1, held_out_fraction=0)
    train(spec, Recorded(), StopWish(), CPU)
    return Path(spec.output_folder, "checkpoint-1")


def test_what_a_checkpoint_cannot_promise_is_said(
    checkpoint: Path, make_spec: MakeSpec, recorded: Recorded
) -> None:
    chosen: dict[str, Any] = {"max_steps": 1, "checkpoint_every_steps": 1, "held_out_fraction": 0}

    def resumed_from(name: str, **changed: Any) -> None:
        folder = checkpoint.with_name(name)
        shutil.copytree(checkpoint, folder)
        described = json.loads((folder / "state.json").read_text("utf-8"))
        described.update(changed)
        (folder / "state.json").write_text(json.dumps(described), "utf-8")
        (folder / "checkpoint.json").unlink()
        _write_manifest(folder)
        train(
            make_spec(name + "-out", ResumePoint(step=1, folder=str(folder)), **chosen),
            recorded,
            StopWish(),
            CPU,
        )

    resumed_from("elsewhere", environment={"torch": "2.9.1"})
    (told,) = recorded.of("logged")
    assert (told.level, told.code) == ("warning", "resumed_elsewhere")
    assert f"torch was 2.9.1 and is {torch.__version__}" in told.message
    with pytest.raises(CheckpointUnusable, match="has format 1, but this engine reads") as refused:
        resumed_from("older", format=1)
    assert refused.value.code == CHECKPOINT_MISMATCH


def test_a_hyperparameter_that_is_gone_matters_only_if_it_was_chosen() -> None:
    identity = Identity(Hyperparameters(rank=4), "a" * 64, "b" * 64)
    written = identity.described()
    assert written["chosen"] == ["rank"]
    known = {"hyperparameters": written["hyperparameters"] | {"colour": "red"}}
    assert identity.differences(written | known) == []
    assert identity.differences(written | known | {"chosen": ["colour", "rank"]}) == [
        "colour was 'red', which this engine does not know"
    ]
    impossible = {"hyperparameters": written["hyperparameters"] | {"rank": 0}}
    assert "refused today" in identity.differences(written | impossible)[0]
