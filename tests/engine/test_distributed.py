"""Several processes share a training as if they were one, and none outlives the others."""

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as distributed
from safetensors.torch import load_file

from benchmarks.engine.oom import longer_than, refusing
from qlora_engine.data.collate import Batch
from qlora_engine.errors import ProcessesDiffer, TooFewDevices
from qlora_engine.parent import ORPHANED
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import train
from qlora_engine.training.distributed import World
from qlora_engine.training.export import ANSWERS_FILE
from qlora_engine.training.forward import Runner
from qlora_engine.training.launch import ProcessFailed, launch, processes_for, train_on_this_node
from qlora_engine.training.loss import Loss
from qlora_engine.training.torchrun import Seat
from qlora_engine.updates import UPDATE, Update
from schemas.training import ResumePoint, TrainingSpec
from tests.engine.child import EngineChild
from tests.engine.conftest import MakeSpec, Recorded

pytestmark = pytest.mark.slow_process
CPU = torch.device("cpu")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """What forks must not have a pool of threads."""
    torch.set_num_threads(1)


def shared(spec: TrainingSpec, recorded: Callable[[Update], None], stop: StopWish | None = None) -> None:
    """Train on two processes."""
    launch(spec, 2, recorded, stop or StopWish(), method="fork")


def series(spec: TrainingSpec) -> list[dict[str, float]]:
    return [
        json.loads(line) for line in Path(spec.output_folder, "series.jsonl").read_text("utf-8").splitlines()
    ]


def difference(one: Path, other: Path) -> float:
    """The largest between two adapters."""
    left, right = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_two_processes_train_as_one_does(make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish) -> None:
    """Batches of 5 leave the processes unequal shares; rows of up to 3 make them unequal forward passes."""
    chosen: dict[str, Any] = {
        "batch_size": 5,
        "micro_batch_size": 3,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "held_out_fraction": 0.1,
    }
    one, two = make_spec("one", **chosen), make_spec("two", **chosen)
    alone = Recorded()
    train(one, alone, no_stop, CPU)
    shared(two, recorded)
    for mine, theirs in zip(series(one), series(two), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-6)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-5)
        assert (theirs["tokens"], theirs["learning_rate"]) == (mine["tokens"], mine["learning_rate"])
    assert difference(Path(one.output_folder, "adapter"), Path(two.output_folder, "adapter")) < 1e-5
    for mine, theirs in zip(alone.of("evaluation_done"), recorded.of("evaluation_done"), strict=True):
        assert theirs.evaluation.loss == pytest.approx(mine.evaluation.loss, rel=1e-5)
        assert theirs.evaluation.examples == mine.evaluation.examples
    answers = [Path(spec.output_folder, "adapter", ANSWERS_FILE) for spec in (one, two)]
    assert answers[0].read_text("utf-8") == answers[1].read_text("utf-8")
    unequal = ("preparing", "alive")
    told = [update.kind for update in recorded.updates if update.kind not in unequal]
    assert told == [update.kind for update in alone.updates if update.kind not in unequal]


def test_a_resumed_training_ends_as_the_unbroken_one(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    """With dropout, of which each process has its own; another number of processes goes on, and says so."""
    chosen: dict[str, Any] = {
        "dropout": 0.2,
        "held_out_fraction": 0,
        "max_steps": 4,
        "checkpoint_every_steps": 2,
    }
    unbroken = make_spec("unbroken", **chosen)
    shared(unbroken, recorded)
    checkpoint = ResumePoint(step=2, folder=str(Path(unbroken.output_folder, "checkpoint-2")))
    resumed = make_spec("resumed", checkpoint, **chosen)
    shared(resumed, recorded)
    assert difference(Path(unbroken.output_folder, "adapter"), Path(resumed.output_folder, "adapter")) == 0
    assert not [log for log in recorded.of("logged") if log.code == "other_processes"]

    by_itself = make_spec("by itself", checkpoint, **chosen)
    train(by_itself, recorded, no_stop, CPU)
    assert recorded.of("training_done")[-1].steps == 4
    (told,) = [log for log in recorded.of("logged") if log.code == "other_processes"]
    assert "2 processes, this attempt has 1" in told.message
    assert series(by_itself)[:2] == series(unbroken)[:2]
    assert difference(Path(unbroken.output_folder, "adapter"), Path(by_itself.output_folder, "adapter")) > 0


def test_a_stop_reaches_all(make_spec: MakeSpec, recorded: Recorded) -> None:
    spec = make_spec(max_steps=100_000, held_out_fraction=0, checkpoint_every_steps=100_000)
    stop = StopWish()

    def stopping(update: Update) -> None:
        recorded(update)
        if update.kind == "step_taken":
            stop.ask("graceful")

    shared(spec, stopping, stop)
    stopped = recorded.updates[-1]
    assert stopped.kind == "training_stopped"
    assert stopped.step == recorded.of("step_taken")[-1].point.step < 100
    assert stopped.adapter_folder is not None
    assert Path(stopped.adapter_folder, WEIGHTS).is_file()
    assert recorded.of("checkpoint_written")[-1].step == stopped.step
    assert multiprocessing.active_children() == []


def test_a_stop_that_one_hears_of_breaks_off_the_evaluation_of_all(
    make_spec: MakeSpec, recorded: Recorded
) -> None:
    spec = make_spec(held_out_fraction=0.4, batch_size=1, max_new_tokens=2)

    def telling_the_second(update: Update) -> None:
        recorded(update)
        if update.kind == "preparing" and update.phase == "evaluating" and update.done:
            second = next(each for each in multiprocessing.active_children() if each.name == "rank-1")
            second.terminate()  # which asks it, and nobody else, to stop in good order

    shared(spec, telling_the_second)
    measured = [update for update in recorded.of("preparing") if update.phase == "evaluating"]
    assert 0 < measured[-1].done < measured[-1].total / 2
    assert recorded.of("evaluation_done") == []
    assert recorded.updates[-1].kind == "training_stopped"


def test_what_one_does_without_all_do_and_a_checkpoint_knows(make_spec: MakeSpec) -> None:
    """Rows are long for the second process only, and not where the checkpoint is made: by the first one."""
    chosen: dict[str, Any] = {"max_steps": 2, "held_out_fraction": 0, "checkpoint_every_steps": 1}
    shaken, again = Recorded(), Recorded()
    long = longer_than(100)
    spec = make_spec("shaken", **chosen)
    with refusing(lambda module, given: distributed.get_rank() == 1 and long(module, given)):
        shared(spec, shaken)
        assert {found.step for found in shaken.of("oom_recovered")} == {1}
        folder = Path(spec.output_folder, "checkpoint-1")
        described = json.loads((folder / "state.json").read_text("utf-8"))
        assert 0 < described["training"]["economy"]["tokens_per_pass"] <= 200
        resumed = make_spec("again", ResumePoint(step=1, folder=str(folder)), **chosen)
        shared(resumed, again)
    assert again.of("oom_recovered") == []
    assert difference(Path(spec.output_folder, "adapter"), Path(resumed.output_folder, "adapter")) == 0


def test_when_one_dies_all_end(make_spec: MakeSpec, recorded: Recorded) -> None:
    spec = make_spec(max_steps=100_000, held_out_fraction=0, checkpoint_every_steps=100_000)

    def killing(update: Update) -> None:
        recorded(update)
        if len(recorded.of("step_taken")) == 1 and update.kind == "step_taken":
            second = next(each for each in multiprocessing.active_children() if each.name == "rank-1")
            second.kill()

    with pytest.raises(ProcessFailed, match="process 2 of 2 was killed by signal 9") as died:
        shared(spec, killing)
    assert (died.value.code, died.value.retryable) == ("process_died", True)
    assert multiprocessing.active_children() == []


def test_an_error_of_one_ends_all_with_its_name(make_spec: MakeSpec, recorded: Recorded) -> None:
    spec = make_spec(max_steps=100_000, held_out_fraction=0, learning_rate=1.0, max_grad_norm=1e6)
    damaged = spec.model_copy(update={"manifest_file": str(Path(spec.output_folder, "none.json"))})
    with pytest.raises(ProcessFailed, match=r"none\.json is not a dataset manifest") as failed:
        shared(damaged, recorded)
    assert (failed.value.code, failed.value.retryable) == ("data_unreadable", False)


def test_the_evidence_of_one_is_told(
    make_spec: MakeSpec, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Runner.loss

    def poisoned(runner: Runner, batch: Batch) -> Loss:
        loss = real(runner, batch)
        return replace(loss, total=loss.total * float("nan")) if distributed.get_rank() == 1 else loss

    monkeypatch.setattr(Runner, "loss", poisoned)
    with pytest.raises(ProcessFailed, match="the loss is nan at step 1") as failed:
        shared(make_spec(held_out_fraction=0), recorded)
    assert failed.value.code == "non_finite_loss"
    assert [line.code for line in recorded.of("logged")] == ["non_finite_evidence", "non_finite_rows"]


def test_the_engine_starts_them_and_takes_them_along(tmp_path: Path, make_spec: MakeSpec) -> None:
    spec = make_spec(max_steps=100_000, held_out_fraction=0, processes=2)
    with EngineChild(tmp_path / "engine.log") as child:
        child.start(spec)
        child.until("alive")  # they have met
        workers = [
            process
            for process in psutil.Process(child.process.pid).children()
            if "spawn_main" in " ".join(process.cmdline())
        ]
        assert len(workers) == 2
        child.close_stdin()
        assert child.process.wait(60) == ORPHANED
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_under_torchrun_it_is_the_same_training(
    tmp_path: Path, make_spec: MakeSpec, recorded: Recorded
) -> None:
    """Bit for bit that of our own launcher; the first process speaks, on the stdout that all have."""
    chosen: dict[str, Any] = {"dropout": 0.2, "max_steps": 2, "held_out_fraction": 0}
    ours, theirs = make_spec("ours", **chosen), make_spec("theirs", **chosen)
    shared(ours, recorded)
    file = tmp_path / "spec.json"
    file.write_text(theirs.model_dump_json(), "utf-8")
    command = ("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m", "qlora_engine")
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command, "--spec", str(file)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    told = [UPDATE.validate_json(line) for line in ran.stdout.splitlines()]
    assert [update.kind for update in told].count("step_taken") == 2
    assert told[-1].kind == "training_done"
    assert difference(Path(ours.output_folder, "adapter"), Path(theirs.output_folder, "adapter")) == 0
    for mine, its in zip(series(ours), series(theirs), strict=True):
        assert (its["loss"], its["grad_norm"]) == (mine["loss"], mine["grad_norm"])


@pytest.mark.parametrize(
    ("processes", "environment", "devices", "error"),
    [
        (4, {}, 0, "processes is 4, but torchrun has started 2; leave processes out of the spec, or"),
        (None, {"LOCAL_WORLD_SIZE": "1"}, 0, "2 processes, 1 of them on this node"),
        (None, {}, 1, "2 processes, but this node has 1 CUDA devices; say --nproc-per-node 1"),
    ],
)
def test_what_torchrun_has_started_has_to_fit(
    processes: int | None, environment: dict[str, str], devices: int, error: str, make_spec: MakeSpec
) -> None:
    seat = Seat.of({"RANK": "1", "WORLD_SIZE": "2"} | environment)
    assert not seat.world.first
    with pytest.raises((ProcessesDiffer, TooFewDevices), match=error):
        seat.check(make_spec(processes=processes), devices)
    Seat.of({"RANK": "0", "WORLD_SIZE": "2"}).check(make_spec(processes=2), 2)


@pytest.mark.parametrize(
    ("asked", "allowed", "devices", "processes"),
    [(None, None, 0, 1), (None, None, 4, 4), (None, 2, 4, 2), (3, None, 0, 3), (3, 2, 0, 2), (2, None, 4, 2)],
)
def test_how_many_processes(
    asked: int | None, allowed: int | None, devices: int, processes: int, make_spec: MakeSpec
) -> None:
    spec = make_spec(processes=asked).model_copy(update={"processes": allowed})
    assert processes_for(spec, devices) == processes


def test_more_processes_than_devices_are_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(TooFewDevices, match="processes is 4, but this node has 2 CUDA devices; lower it"):
        processes_for(make_spec(processes=4), 2)


def test_what_the_operator_does_not_allow_is_said(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    spec = make_spec(processes=3, max_steps=1, held_out_fraction=0).model_copy(update={"processes": 1})
    train_on_this_node(spec, recorded, no_stop)
    assert "engine_processes allows 1" in recorded.of("logged")[0].message
    assert recorded.updates[-1].kind == "training_done"


def test_a_world_of_one_agrees_with_itself() -> None:
    world = World()
    assert world.combine([1.5, 2], "sum") == [1.5, 2]
    assert world.gather("x") == ["x"]
    assert world.once(lambda: 7) == 7
    assert world.slice([1, 2, 3]) == [1, 2, 3]
    assert world.asked(StopWish("immediate")) == "immediate"


def test_ranks_are_given_out_as_one_process_does(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    chosen: dict[str, Any] = {
        "rank_allocation": {},
        "rank": 2,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "held_out_fraction": 0.1,
    }
    one, two = make_spec("one", **chosen), make_spec("two", **chosen)
    alone = Recorded()
    train(one, alone, no_stop, CPU)
    shared(two, recorded)
    (mine,), (theirs,) = alone.of("rank_changed"), recorded.of("rank_changed")
    assert theirs.layers == mine.layers
    assert theirs.trial.examples == mine.trial.examples
    assert theirs.trial.uniform_loss == pytest.approx(mine.trial.uniform_loss, rel=1e-5)
    # What has just grown has gradients near 0: of how they are rounded, Adam's first steps make whole ones.
    assert theirs.trial.allocated_loss == pytest.approx(mine.trial.allocated_loss, rel=2e-3)
    assert series(two)[-1]["loss"] == pytest.approx(series(one)[-1]["loss"], rel=2e-3)
