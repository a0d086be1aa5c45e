"""How soon an engine tells of a step, and how soon after a stop its checkpoint is on disk."""

import time
from pathlib import Path

from benchmarks.engine.recovery import make_spec
from benchmarks.installation import console, scratch
from benchmarks.report import Result, percentile
from qlora_engine.training.checkpoints import verify
from qlora_engine.updates import CheckpointWritten, StepTaken, Stop
from schemas.training import Hyperparameters, TrainingSpec
from tests.engine.child import EngineChild

STOPS = 5
STEPS_BEFORE = 20
SECONDS_TO_SAVE = 2.0


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark: about a minute, or less when quick."""
    told: list[float] = []
    beyond: list[float] = []
    with scratch() as folder:
        spec = make_spec(folder)
        for number in range(2 if quick else STOPS):
            asked = spec(folder / f"stopped-{number}")
            chosen = asked.hyperparameters.model_dump() | {
                "max_steps": 100_000,
                "checkpoint_every_steps": 100_000,
            }
            one = asked.model_copy(update={"hyperparameters": Hyperparameters(**chosen)})
            delays, seconds, step = _stopped(one, folder / "engine.log")
            told += delays
            beyond.append(seconds - step)
            console.print(f"engine.control: stop → checkpoint {seconds:.3f} s, a step takes {step:.3f} s")
    return [
        Result("step taken → update on the pipe, 95 %", percentile(told, 0.95) * 1000, "ms", 50),
        Result("step taken → update on the pipe, median", percentile(told, 0.5) * 1000, "ms"),
        Result("stop → durable checkpoint, beyond a step, worst", max(beyond), "s", SECONDS_TO_SAVE),
    ]


def _stopped(spec: TrainingSpec, log: Path) -> tuple[list[float], float, float]:
    """Delays of updates, seconds from the stop to a whole checkpoint, seconds of a usual step."""
    series = Path(spec.output_folder, "series.jsonl")
    delays, steps = [], []
    with EngineChild(log) as child:
        child.start(spec)
        asked = 0.0
        for update in child.updates():
            now = time.time()
            if isinstance(update, StepTaken):
                # A step's last act is its line in the series; if there is a newer one, this tells nothing.
                delay = now - series.stat().st_mtime
                if delay >= 0:
                    delays.append(delay)
                steps.append(update.point.step_seconds)
                if len(steps) == STEPS_BEFORE:
                    child.send(Stop(mode="graceful"))
                    asked = time.perf_counter()
            elif isinstance(update, CheckpointWritten):
                seconds = time.perf_counter() - asked
                verify(Path(update.folder))
                return delays, seconds, percentile(steps, 0.5)
    raise RuntimeError(f"the engine ended without a checkpoint; see {log}")
