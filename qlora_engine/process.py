"""The engine as a child process: control lines come in on stdin, updates leave on a private pipe.

Run: ``python -m qlora_engine --updates-fd N`` with ``Start`` as the first line on stdin, then ``Stop`` at any
time. End of file on stdin ends the process at once, and so does the parent's death. SIGTERM stops gracefully.
By hand: ``python -m qlora_engine --spec FILE``, also under torchrun, does one spec and reads no stdin; Ctrl-C
or SIGTERM stops gracefully, and at once when it comes again.
Exit codes: 0 done or stopped, 1 failed (the last update is `EngineFailed`), 2 wrong usage, 3 the parent is
gone, 4 a validation was abandoned.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from pydantic import BaseModel, TypeAdapter, ValidationError

from qlora_engine.failures import failure_of
from qlora_engine.imports import uncollected
from qlora_engine.parent import ORPHANED, die_with_parent
from qlora_engine.spans import span
from qlora_engine.stopping import StopWish
from qlora_engine.updates import CONTROL, Start, Stop, Update
from schemas.training import DatasetValidationSpec, EngineSpec, ModelValidationSpec, TrainingSpec

TORCHRUN = {"RANK", "WORLD_SIZE", "MASTER_ADDR"}
"""What is in the environment of a process that torchrun has started."""
FAILED = 1
MISUSED = 2
ABANDONED = 4


@dataclass
class UpdatePipe:
    """Writes one JSON line per update; usable from several threads."""

    stream: BinaryIO
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def emit(self, update: Update | BaseModel) -> None:
        line = update.model_dump_json().encode() + b"\n"
        with self._lock:
            try:
                self.stream.write(line)
                self.stream.flush()
            except BrokenPipeError:
                os._exit(ORPHANED)


@dataclass
class ControlReader:
    """Reads stdin on a thread of its own, so that a stop is seen while the device computes."""

    stream: BinaryIO
    stop: StopWish
    spec: EngineSpec | None = None
    _started: threading.Event = field(default_factory=threading.Event)

    def start(self) -> EngineSpec:
        """Begin to read; returns the spec of the first line."""
        threading.Thread(target=self._read, name="control", daemon=True).start()
        self._started.wait()
        assert self.spec is not None  # noqa: S101 - an invariant
        return self.spec

    def _read(self) -> None:
        for line in iter(self.stream.readline, b""):
            try:
                control = CONTROL.validate_json(line)
            except ValidationError as error:
                print(f"qlora_engine: a control line is not understood: {error}", file=sys.stderr)  # noqa: T201
                if self.spec is None:
                    os._exit(MISUSED)
                continue
            match control:
                case Start(spec=spec) if self.spec is None:
                    self.spec = spec
                    self._started.set()
                case Start():
                    print("qlora_engine: only the first line may be a start", file=sys.stderr)  # noqa: T201
                case Stop(mode=mode):
                    self._ask(mode)
        os._exit(ORPHANED)

    def _ask(self, mode: str) -> None:
        if self.spec is not None and not isinstance(self.spec, TrainingSpec):
            os._exit(ABANDONED)
        self.stop.ask("immediate" if mode == "immediate" else "graceful")


def run(updates: BinaryIO, expected_parent: int | None = None) -> NoReturn:
    """Be an engine: read the spec, run it, exit."""
    die_with_parent(expected_parent)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    stop = StopWish()
    reader = ControlReader(sys.stdin.buffer, stop)

    def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
        reader._ask("graceful")

    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C at a terminal is for the parent, which then stops us
    pipe = UpdatePipe(updates)
    spec = reader.start()
    failed = failure_of(lambda: dispatch(spec, pipe, stop))
    if failed is not None:
        pipe.emit(failed)
        _leave(FAILED)
    _leave(0)


def run_by_hand(updates: BinaryIO, file: Path) -> NoReturn:
    """Run the spec in `file` and exit; under torchrun as one of its processes."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    stop = StopWish()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.ask("graceful" if stop.mode is None else "immediate")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        spec: EngineSpec = TypeAdapter[EngineSpec](EngineSpec).validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        print(f"qlora_engine: {file} is not the spec of a work: {error}", file=sys.stderr)  # noqa: T201
        _leave(MISUSED)
    pipe = UpdatePipe(updates)
    emit: Callable[[Update], None] = pipe.emit
    if isinstance(spec, TrainingSpec) and os.environ.keys() >= TORCHRUN:
        die_with_parent()
        with uncollected():
            from qlora_engine.training.torchrun import Seat, train_under_torchrun, voice

        seat = Seat.of(os.environ)
        emit = voice(seat.world, pipe.emit)
        failed = failure_of(lambda: train_under_torchrun(spec, seat, emit, stop))
    else:
        failed = failure_of(lambda: dispatch(spec, pipe, stop))
    if failed is not None:
        emit(failed)
    _leave(0 if failed is None else FAILED)


def dispatch(spec: EngineSpec, pipe: UpdatePipe, stop: StopWish) -> None:
    """Run one spec; what it needs is imported here, because validating videos needs no torch."""
    match spec:
        case TrainingSpec():
            with uncollected():
                from qlora_engine.training.launch import train_on_this_node

            train_on_this_node(spec, pipe.emit, stop)
        case DatasetValidationSpec():
            with uncollected():
                from qlora_engine.data.validation import validate_dataset

            with span(pipe.emit, "validate dataset"):
                dataset_verdict = validate_dataset(spec, pipe.emit)
            pipe.emit(dataset_verdict)
        case ModelValidationSpec():
            with uncollected():
                from qlora_engine.models.validation import validate_model

            with span(pipe.emit, "validate model"):
                model_verdict = validate_model(spec, pipe.emit)
            pipe.emit(model_verdict)


def _leave(code: int) -> NoReturn:
    # Not sys.exit: interpreter shutdown waits for library threads, and the control thread sits in a read.
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
