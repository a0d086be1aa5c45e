"""One process that must not outlive us: started, logged, watched and ended."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
from pydantic import ValidationError

from kinora.local.errors import ChildFailed
from kinora.local.folder import DataFolder
from kinora.local.private_file import revealed_json, write_private
from schemas.base import Message

_KEPT_LOGS = 5
_COPY_BYTES = 2**20
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Account:
    """Another user to run as; only root can ask for one."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Program:
    """What to run and how to end it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    """All of it: nothing is inherited."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    account: Account | None = None
    descriptors: tuple[int, ...] = ()
    """Open files to hand down."""
    log_bytes: int = 8 * 2**20
    """How large its log may grow before a new one is begun."""


class Identity(Message):
    """A process, told apart from a later one with the same number."""

    pid: int
    created: float
    program: str

    @classmethod
    def of(cls, process: psutil.Process) -> Self:
        return cls(pid=process.pid, created=process.create_time(), program=process.exe())

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """The one that `file` names; None when there is no such file, or it is damaged."""
        try:
            return cls.model_validate_json(file.read_text())
        except (FileNotFoundError, ValidationError):
            return None

    def process(self) -> psutil.Process | None:
        """The process, if it is still there; never another one."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < 2 and found.exe() == self.program
        except psutil.Error:
            return None
        return found if same else None


class Child:
    """A running `Program`. It gets a session of its own, so that Ctrl-C in a terminal reaches only us.

    On Linux the kernel sends it `stop_signal` when the *thread* that started it ends, so start children in
    a thread that lives as long as they should. Elsewhere a killed parent leaves it behind, and the next
    start on the same data folder ends it.
    """

    def __init__(self, program: Program, folder: DataFolder) -> None:
        self.program = program
        self.log = folder.logs / f"{program.name}.log"
        self._identity_file = folder.run / f"{program.name}.pid"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def pid(self) -> int | None:
        """None before the start."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and before; negative: the signal that ended it."""
        return self._process.poll() if self._process else None

    async def start(self) -> None:
        """Start it, after the end of one that a crash of ours left behind.

        Raises:
            ChildFailed: when the program cannot be run.
        """
        await self.end_leftover()
        self._rotate_logs()
        try:
            self._process = self._spawn()
        except (OSError, subprocess.SubprocessError) as error:
            raise ChildFailed(
                f"{self.name} cannot be started from {self.program.command[0]}: {error}"
            ) from error
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended at once: the caller's wait will tell
            write_private(self._identity_file, revealed_json(Identity.of(psutil.Process(self._process.pid))))

    async def ready(self, probe: Callable[[], Awaitable[bool]], *, seconds: float) -> None:
        """Wait until `probe` answers true.

        Raises:
            ChildFailed: when the process ends first or the time is over; quotes the log's end.
        """
        deadline = time.monotonic() + seconds
        while not await probe():
            if not self.running:
                raise self.failure()
            if time.monotonic() > deadline:
                raise ChildFailed(f"{self.name} was not ready within {seconds:g} s\n{self.log_end()}")
            await asyncio.sleep(0.02)

    async def ended(self, *, seconds: float) -> bool:
        """Wait for its end; False when it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def stop(self) -> None:
        """End it: politely, then by force. Does nothing when it has ended."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(self.program.stop_signal)
            if not await self.ended(seconds=self.program.stop_seconds):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                await self.ended(seconds=10)
        self._identity_file.unlink(missing_ok=True)

    def failure(self) -> ChildFailed:
        """Why it is no longer there."""
        code = self.exit_code
        how = f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
        return ChildFailed(f"{self.name} {how}; see {self.log}\n{self.log_end()}")

    def log_end(self, lines: int = 15) -> str:
        """The last lines that it wrote."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 16_384))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    async def bound_log(self) -> None:
        """Begin a new log when this one is full, while the process goes on writing."""
        try:
            size = self.log.stat().st_size
        except FileNotFoundError:
            return
        if size > self.program.log_bytes:
            with contextlib.suppress(OSError):  # on a full disk the old log is as good as any
                await asyncio.to_thread(self._turn_over)

    def _turn_over(self) -> None:
        """Copy and empty it, because the process keeps its descriptor.

        It appends, so that its next line is the first of the emptied file. A line that it writes between our
        last look and the cut is lost; that takes microseconds, once in eight megabytes.
        """
        self._shift_logs()
        kept = os.open(self.log.with_suffix(".log.1"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with self.log.open("r+b") as written, os.fdopen(kept, "wb", buffering=0) as copy:
            while block := written.read(_COPY_BYTES):
                copy.write(block)
            written.truncate(0)

    def _spawn(self) -> subprocess.Popen[bytes]:
        program = self.program
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(
                list(program.command),
                env=dict(program.environment),
                cwd="/",  # never keep a folder of the caller busy
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
                pass_fds=program.descriptors,
                preexec_fn=_end_with_parent(program.stop_signal),
                user=program.account.uid if program.account else None,
                group=program.account.gid if program.account else None,
                extra_groups=[] if program.account else None,
            )
        finally:
            os.close(descriptor)

    async def end_leftover(self) -> None:
        """End the process of this name that a crash of ours left behind."""
        identity = Identity.read(self._identity_file)
        leftover = identity.process() if identity is not None else None
        if leftover is None:
            return
        # It was told to stop when its parent died; a server may still be writing its last page.
        for number in (None, self.program.stop_signal, signal.SIGKILL):
            with contextlib.suppress(psutil.NoSuchProcess):
                if number is not None:
                    leftover.send_signal(number)
            if await _gone(leftover, seconds=self.program.stop_seconds):
                break
        self._identity_file.unlink(missing_ok=True)

    def _rotate_logs(self) -> None:
        self._shift_logs()
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))

    def _shift_logs(self) -> None:
        """Make room for another `.log.1`; the oldest goes."""
        for number in range(_KEPT_LOGS - 1, 1, -1):
            newer = self.log.with_suffix(f".log.{number - 1}")
            if newer.exists():
                newer.replace(self.log.with_suffix(f".log.{number}"))


async def _gone(process: psutil.Process, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


def _end_with_parent(stop_signal: signal.Signals) -> Callable[[], None] | None:
    """Runs between fork and exec, after the change of user (which would clear the setting)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask_the_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, int(stop_signal), 0, 0, 0)
        if os.getppid() != parent:  # we were killed before the kernel knew
            os._exit(1)

    return ask_the_kernel
