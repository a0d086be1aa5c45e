"""Runs a training on as many processes as the node has devices, and speaks for all of them.

One process trains by itself. For several, this one becomes their supervisor: it passes on what the first of
them tells, hands stops down to all, and ends all when one of them dies or fails, with the error that came
first and not with those it caused in the others. They end with it, however it ends.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, NoReturn

import torch

from qlora_engine.device import best_device
from qlora_engine.errors import EngineError, PeerLost, TooFewDevices
from qlora_engine.failures import failure_of
from qlora_engine.imports import uncollected
from qlora_engine.noise import hush
from qlora_engine.parent import ORPHANED, die_with_parent
from qlora_engine.stopping import Mode, StopWish
from qlora_engine.training.distributed import World, joined, on_loopback, told
from qlora_engine.updates import UPDATE, Alive, EngineFailed, Logged, Update
from schemas.training import TrainingSpec

Emit = Callable[[Update], None]
StartMethod = Literal["spawn", "fork"]
LAST_WORDS = ("training_done", "training_stopped")
STOP_SECONDS = 0.05
"""How often a wish to stop is looked for."""
BLAME_SECONDS = 5.0
"""How long the cause of a failure is waited for, where a process only says that another one is gone."""
FAREWELL_SECONDS = 10.0
"""How long the others may take to end when the first has said its last word."""


def train_on_this_node(spec: TrainingSpec, emit: Emit, stop: StopWish) -> None:
    """Run the attempt on the processes that spec and node allow.

    Raises:
        EngineError: the training cannot go on.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = processes_for(spec, devices)
    asked = spec.hyperparameters.processes
    if asked is not None and processes < asked:
        emit(
            Logged(
                level="warning",
                code="fewer_processes",
                message=f"processes is {asked}, but this node's engine_processes allows {processes}; the"
                " numbers are the same, the training takes longer",
            )
        )
    if processes > 1:
        launch(spec, processes, emit, stop)
        return
    with uncollected():
        from qlora_engine.training.attempt import train  # heavy, and a supervisor does without

    train(spec, emit, stop)


def processes_for(spec: TrainingSpec, devices: int) -> int:
    """As many as the job asks for, else one per CUDA device; no more than the node's operator allows.

    Raises:
        TooFewDevices: more processes than CUDA devices; two on one device would only share it.
    """
    wanted = spec.hyperparameters.processes or max(1, devices)
    if spec.processes is not None:
        wanted = min(wanted, spec.processes)
    if 0 < devices < wanted:
        raise TooFewDevices(
            f"processes is {wanted}, but this node has {devices} CUDA devices; lower it to at most {devices},"
            " or leave it out to use them all"
        )
    return wanted


def launch(
    spec: TrainingSpec, processes: int, emit: Emit, stop: StopWish, method: StartMethod = "spawn"
) -> None:
    """Train on `processes` processes. `fork` starts sooner, but not where CUDA or threads are in use.

    Raises:
        EngineError: what ended the training, with the code that the process gave which it began with.
    """
    # A private folder and the loopback device: no port of ours is open to anyone else.
    with tempfile.TemporaryDirectory(prefix="kinora-ranks-") as folder:
        seats = [
            _Seat(World(rank, processes), os.getpid(), str(Path(folder, "meeting-point")), spec)
            for rank in range(processes)
        ]
        workers = [_Worker.start(seat, method) for seat in seats]
        try:
            _Supervisor(workers, emit, stop).supervise()
        finally:
            for worker in workers:
                worker.end()


@dataclass(frozen=True)
class _Seat:
    """What a process is told at its start."""

    world: World
    supervisor: int
    meeting_point: str
    spec: TrainingSpec


@dataclass
class _Worker:
    world: World
    process: BaseProcess
    connection: Connection
    open: bool = True
    """Whether it may still say something."""
    failed: EngineFailed | None = None

    @classmethod
    def start(cls, seat: _Seat, method: StartMethod) -> "_Worker":
        context = ForkContext() if method == "fork" else SpawnContext()
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(seat, theirs), name=f"rank-{seat.world.rank}")
        process.start()
        theirs.close()
        return cls(seat.world, process, ours)

    def heard(self) -> Update | None:
        """What it says next; None when it will say nothing more."""
        try:
            return UPDATE.validate_json(self.connection.recv_bytes())
        except (EOFError, ConnectionError):
            self.open = False
            return None

    def tell(self, mode: Mode) -> None:
        with suppress(OSError):  # it is gone, which is seen elsewhere
            self.connection.send_bytes(mode.encode())

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    @property
    def death(self) -> EngineFailed | None:
        """Of a process that ended badly without a word."""
        code = self.process.exitcode
        if self.open or code in (None, 0) or self.failed is not None:
            return None
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"exited with code {code}"
        return EngineFailed(
            code="process_died",
            message=f"process {self.world.rank + 1} of {self.world.size} {how} without a word; if it was"
            " signal 9, memory may have run out: see the kernel's log, or lower processes",
            retryable=True,
        )


@dataclass
class _Supervisor:
    workers: list[_Worker]
    emit: Emit
    stop: StopWish
    _told: Mode | None = None
    _over: float | None = None
    """When waiting for the others, or for the cause of a failure, ends."""
    _done: bool = False
    """Whether the first process has said its last word: what it left is complete."""

    def supervise(self) -> None:
        """Until all have ended.

        Raises:
            EngineError: see `launch`.
        """
        while not self._ended():
            self._pass_on_stop()
            waiting = [worker.connection for worker in self.workers if worker.open]
            ready = wait(waiting, STOP_SECONDS) if waiting else wait(self._running(), STOP_SECONDS)
            for worker in self.workers:
                if worker.connection in ready:
                    self._hear(worker)
            if not self._done:
                self._look_for_the_cause(patient=True)

    def _hear(self, worker: _Worker) -> None:
        update = worker.heard()
        if update is None:
            return
        if isinstance(update, EngineFailed):
            worker.failed = update
        elif told(worker.world, update):
            self.emit(update)
            if update.kind in LAST_WORDS:
                self._done, self._over = True, time.monotonic() + FAREWELL_SECONDS

    def _look_for_the_cause(self, *, patient: bool) -> None:
        found = [failed for worker in self.workers if (failed := worker.failed or worker.death) is not None]
        causes = [failed for failed in found if failed.code != PeerLost.code]
        if causes:
            raise ProcessFailed(causes[0])
        if found and self._over is None:
            self._over = time.monotonic() + BLAME_SECONDS
        if found and (not patient or self._overdue):
            raise ProcessFailed(found[0])

    def _ended(self) -> bool:
        if self._done:
            return not self._running() or self._overdue
        if any(worker.open for worker in self.workers) or self._running():
            return False
        self._look_for_the_cause(patient=False)
        raise ProcessFailed(
            EngineFailed(code="process_died", message="all processes ended without a result", retryable=True)
        )

    @property
    def _overdue(self) -> bool:
        return self._over is not None and time.monotonic() > self._over

    def _running(self) -> list[int]:
        return [worker.process.sentinel for worker in self.workers if worker.process.exitcode is None]

    def _pass_on_stop(self) -> None:
        if self.stop.mode is not None and self.stop.mode != self._told:
            self._told = self.stop.mode
            for worker in self.workers:
                worker.tell(self._told)


class ProcessFailed(EngineError):
    """One of several processes could not go on; has the code that it gave."""

    def __init__(self, failed: EngineFailed) -> None:
        super().__init__(failed.message, code=failed.code)
        self.retryable = failed.retryable


# ---- in a process of its own -----------------------------------------------------------------------------


def _work(seat: _Seat, connection: Connection) -> NoReturn:
    die_with_parent(seat.supervisor)
    hush()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    on_loopback()
    stop = StopWish()
    # Who ends a whole group of processes means an end in good order; Ctrl-C is for the supervisor's parent.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: stop.ask("graceful"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_listen, args=(connection, stop), name="control", daemon=True).start()
    emit = _voice(connection, seat.world)
    failed = failure_of(lambda: _train(seat, emit, stop))
    if failed is not None:
        emit(failed)
    # Not a return: libraries' threads and the one that listens must not keep us.
    os._exit(0 if failed is None else 1)


def _train(seat: _Seat, emit: Emit, stop: StopWish) -> None:
    device = best_device()
    if device.type == "cuda":
        device = torch.device("cuda", seat.world.rank)
    with joined(seat.world, Path(seat.meeting_point), device) as world:
        emit(Alive())
        with uncollected():
            from qlora_engine.training.attempt import train  # heavy: it takes longer than to meet

        train(seat.spec, emit, stop, device, world)


def _voice(connection: Connection, world: World) -> Callable[[Update], None]:
    lock = threading.Lock()

    def emit(update: Update) -> None:
        if told(world, update):
            with lock, suppress(BrokenPipeError):  # the listener ends us
                connection.send_bytes(update.model_dump_json().encode())

    return emit


def _listen(connection: Connection, stop: StopWish) -> None:
    try:
        while True:
            stop.ask("immediate" if connection.recv_bytes() == b"immediate" else "graceful")
    except (EOFError, OSError):
        os._exit(ORPHANED)
