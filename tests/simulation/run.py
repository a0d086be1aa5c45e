"""One seed from beginning to end; `python -m tests.simulation.run --seed 17` prints what happened."""

import argparse
import gc
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import psycopg
import structlog

from command_api.eventlog import log as log_module
from tests.faults.history import Violation
from tests.simulation.checking import Judge
from tests.simulation.postgres.connections import connect_on, datastore_on
from tests.simulation.scheduler import Livelock, SimulatedLoop, Stalled, run
from tests.simulation.virtual import virtual
from tests.simulation.world import World

OPERATIONS = 220


@dataclass(frozen=True)
class Verdict:
    """What became of one seed."""

    seed: int
    violations: list[Violation]
    trace: list[str]
    operations: int
    faults: list[str]
    events: int
    steps: int

    def __str__(self) -> str:
        broken = "\n".join(f"  {violation}" for violation in self.violations)
        return (
            f"seed {self.seed} broke {len(self.violations)} rules:\n{broken}\n"
            f"faults: {', '.join(self.faults)}\n"
            f"replay it with: make simulate SEED={self.seed}"
        )


def simulate(
    seed: int,
    *,
    operations: int = OPERATIONS,
    may_fail: Sequence[str] = (),
    trace_all: bool = False,
) -> Verdict:
    """Run one seed and judge it; `may_fail` narrows the faults to some of `faults.FAULTS`."""
    loop = SimulatedLoop(seed)
    world = World(loop, operations, may_fail)
    judge = Judge(world)
    world.look = judge.look  # type: ignore[method-assign]
    structlog_silent = structlog.get_config()
    structlog.configure(processors=[_to_trace(loop)], cache_logger_on_first_use=False)
    handler = _Trace(loop)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO if trace_all else logging.WARNING)
    gc_was_on = gc.isenabled()
    gc.disable()  # what a collection ends would end at another moment each time
    try:
        with (
            virtual(loop),
            mock.patch.object(psycopg.AsyncConnection, "connect", connect_on(world.pg_network)),
            mock.patch.object(log_module, "PostgresDatastore", datastore_on(world.pg_network)),
        ):
            try:
                run(loop, world.run())
            except (Stalled, Livelock) as stuck:
                judge.found(Violation("stuck", "everything", repr(stuck)))
            judge.end()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        structlog.configure(**structlog_silent)
        if gc_was_on:
            gc.enable()
    events = len(world.postgres.table("kinora_events").rows)
    return Verdict(seed, judge.violations, loop.trace, world.done, world.faults, events, loop.steps)


class _Trace(logging.Handler):
    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        self._loop.note(f"{record.levelname.lower()}: {record.getMessage()}")


def _to_trace(loop: SimulatedLoop) -> structlog.typing.Processor:
    def note(_logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        fields = " ".join(f"{name}={value}" for name, value in event.items() if name != "event")
        loop.note(f"{method}: {event['event']} {fields}")
        raise structlog.DropEvent

    return note


def main() -> int:
    """Run seeds until they are through or one fails."""
    parser = argparse.ArgumentParser(description="Run the simulation")
    parser.add_argument("--seeds", type=int, default=300, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=None, help="only this one, with its whole trace")
    options = parser.parse_args()
    if options.seed is not None:
        verdict = simulate(options.seed, trace_all=True)
        print("\n".join(verdict.trace))
        print(verdict if verdict.violations else f"seed {verdict.seed} broke no rule")
        return 1 if verdict.violations else 0
    failed = 0
    for seed in range(options.first, options.first + options.seeds):
        verdict = simulate(seed)
        if verdict.violations:
            failed += 1
            print(verdict, flush=True)
    print(f"{options.seeds} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
