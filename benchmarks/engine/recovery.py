"""Trainings that are killed at random points and go on: their adapters against that of an unbroken one.

Mid-epoch, in a later epoch and during a save, with packed rows, dropout, 8-bit
moments and ranks that change. Every attempt is a
process of its own that gets SIGKILL; the next goes on from the newest checkpoint, as an agent's would.
"""

import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from benchmarks.installation import console, scratch
from benchmarks.report import Result
from qlora_engine.updates import UPDATE, StepTaken, Update
from schemas.training import DatasetValidationSpec, Hyperparameters, ResumePoint, TrainingSpec

CLIPS = 40
STEPS = 14
KILLS = 20
FILES = ("adapter_model.safetensors", "adapter_config.json")
CHOSEN: dict[str, Any] = {
    "optimizer": "adamw_8bit",
    "rank": 64,  # large enough for bitsandbytes to keep moments in 8 bits
    "dropout": 0.1,
    "tokens_per_micro_batch": 250,
    "tokens_per_step": 500,
    "max_steps": STEPS,
    "checkpoint_every_steps": 2,
    "learning_rate": 2e-3,
    "held_out_fraction": 0.0,
    "rank_allocation": {"gate": False, "explore_ratio": 0.3, "floor_rank": 32},
}
Where = Literal["mid-epoch", "later epoch", "during a save"]
PARTIAL = re.compile(r"/\.checkpoint-\d+\.partial$")
WHERE: Sequence[Where] = ("mid-epoch", "later epoch", "during a save")


@dataclass(frozen=True)
class Kill:
    """Where an attempt ends."""

    where: Where
    after_step: int
    """That the attempt itself took."""
    delay: float
    """Seconds from there on, or from a save's begin."""


@dataclass
class Ended:
    """How an attempt ended."""

    killed: bool
    updates: list[Update] = field(default_factory=list)

    @property
    def decoded(self) -> int:
        """Clips; of an attempt that came to its end."""
        facts = [update.facts for update in self.updates if update.kind == "span_ended"]
        return next(int(fact["decoded"]) for fact in facts if "decoded" in fact)


@dataclass(frozen=True)
class Survived:
    """A training that was killed and came to its end."""

    equal: bool
    """Byte by byte to the unbroken one."""
    kills: int
    decoded_again: int
    """Clips beyond those that no earlier attempt had finished."""


def run_here(spec: str, updates: Connection, kill: Kill | None) -> None:
    """The child's part."""
    import torch

    from qlora_engine.noise import hush
    from qlora_engine.stopping import StopWish
    from qlora_engine.training.attempt import train

    hush()
    end = None if kill is None else _End(kill)

    def emit(update: Update) -> None:
        updates.send_bytes(update.model_dump_json().encode())
        if end is not None and isinstance(update, StepTaken):
            end.step_taken()

    train(TrainingSpec.model_validate_json(spec), emit, StopWish(), torch.device("cpu"))


class _End:
    """Kills its own process, because whoever watches from outside is late on a busy machine."""

    def __init__(self, kill: Kill) -> None:
        self._kill = kill
        self._taken = 0

    def step_taken(self) -> None:
        self._taken += 1
        if self._taken != self._kill.after_step + 1:
            return
        if self._kill.where == "during a save":
            sys.addaudithook(self._look)
        else:
            self._begin()

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        """A checkpoint is filled in a folder with such a name."""
        if event == "os.mkdir" and PARTIAL.search(str(arguments[0])):
            self._begin()

    def _begin(self) -> None:
        threading.Thread(target=self._die, daemon=True).start()

    def _die(self) -> None:
        time.sleep(self._kill.delay)
        os.kill(os.getpid(), signal.SIGKILL)


def context() -> Any:
    """Processes that begin with everything imported."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["qlora_engine.training.attempt"])
    return found


def attempt(processes: Any, spec: TrainingSpec, kill: Kill | None) -> Ended:
    """One process, to its end or until it is killed."""
    mine, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=run_here, args=(spec.model_dump_json(), theirs, kill))
    child.start()
    theirs.close()
    ended = Ended(killed=False)
    with suppress(EOFError):
        while True:
            ended.updates.append(UPDATE.validate_json(mine.recv_bytes()))
    child.join()
    ended.killed = child.exitcode != 0
    if kill is None and ended.killed:
        raise RuntimeError(f"the training ended by itself with {child.exitcode}: {ended.updates[-1:]}")
    return ended


def newest(output: Path) -> ResumePoint | None:
    """The last complete checkpoint."""
    found = [int(folder.name.split("-")[1]) for folder in output.glob("checkpoint-*")]
    return ResumePoint(step=max(found), folder=str(output / f"checkpoint-{max(found)}")) if found else None


def survive(
    processes: Any, spec: TrainingSpec, kills: Sequence[Kill], expected: Sequence[bytes], clips: int
) -> Survived:
    """Kill a training at each of `kills` in turn, and let it come to its end.

    The cache of frames must be the training's own: what others keep in it would count as decoded.
    """
    output, cache = Path(spec.output_folder), Path(spec.frame_cache_folder or "")
    killed, finished = 0, 0
    for kill in (*kills, None):
        ended = attempt(processes, spec.model_copy(update={"resume": newest(output)}), kill)
        if not ended.killed:  # it was over before
            break
        killed += 1
        finished = len(list(cache.glob("**/*.frames")))
    again = max(0, ended.decoded - (clips - finished)) if killed else 0
    return Survived(adapter(output) == list(expected), killed, again)


def adapter(output: Path) -> list[bytes]:
    """What a finished training wrote."""
    return [(output / "adapter" / name).read_bytes() for name in FILES]


def random_kill(where: Where, steps: int, random_numbers: random.Random, seconds: float) -> Kill:
    """Somewhere in the first or in the second half of `steps`; `seconds` is about a step's time."""
    half = steps // 2
    match where:
        case "mid-epoch":
            return Kill(where, random_numbers.randrange(half), random_numbers.uniform(0, seconds))
        case "later epoch":
            return Kill(where, random_numbers.randrange(half, steps - 1), random_numbers.uniform(0, seconds))
        case "during a save":
            return Kill(where, random_numbers.randrange(steps - 2), random_numbers.uniform(0, 0.01))


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark; some minutes, or less than one when quick."""
    kills, seed = (3 if quick else KILLS), random.SystemRandom().randrange(1 << 32)
    console.print(f"engine.recovery: seed {seed}")
    random_numbers, processes = random.Random(seed), context()
    with scratch() as folder:
        spec = make_spec(folder)
        began = time.perf_counter()
        unbroken = attempt(processes, spec(folder / "unbroken"), None)
        console.print(f"engine.recovery: unbroken in {time.perf_counter() - began:.1f} s")
        expected = adapter(folder / "unbroken")
        seconds = [update.point.step_seconds for update in unbroken.updates if isinstance(update, StepTaken)]
        typical = sorted(seconds)[len(seconds) // 2]
        found = []
        for number in range(kills):
            kill = random_kill(WHERE[number % len(WHERE)], STEPS, random_numbers, typical)
            survived = survive(processes, spec(folder / f"killed-{number}"), [kill], expected, CLIPS)
            console.print(f"engine.recovery: {number + 1} of {kills}: {kill}: {survived}")
            found.append(survived)
    return results(found)


def results(found: Sequence[Survived]) -> list[Result]:
    return [
        Result("killed trainings", len(found), ""),
        Result("of them really killed before their end", sum(each.kills > 0 for each in found), ""),
        Result(
            "adapters that equal the unbroken one's, byte by byte",
            sum(each.equal for each in found),
            "",
            len(found),
            at_least=True,
        ),
        Result("clips decoded again after they were ready", sum(each.decoded_again for each in found), "", 0),
    ]


def make_spec(folder: Path) -> Callable[[Path], TrainingSpec]:
    """Clips, their manifest and a base model in `folder`; returns how a spec is made for an output."""
    from qlora_engine.data.shapes import make_sample_dataset
    from qlora_engine.data.validation import validate_dataset
    from qlora_engine.models.tiny_random import make_random_model

    make_sample_dataset(folder / "clips", clips=CLIPS)
    verdict = validate_dataset(
        DatasetValidationSpec(dataset_folder=str(folder / "clips"), output_folder=str(folder / "validated")),
        lambda _: None,
    )
    model = make_random_model(folder / "model", "smolvlm")

    def spec(output: Path) -> TrainingSpec:
        return TrainingSpec(
            job_id=f"job_{'0' * 32}",
            attempt=1,
            hyperparameters=Hyperparameters(**CHOSEN),
            model_folder=str(model),
            dataset_folder=str(folder / "clips"),
            manifest_file=str(verdict.manifest_file),
            output_folder=str(output),
            frame_cache_folder=str(output.with_name(output.name + "-frames")),
            threads=1,
        )

    return spec
