"""Decoding in processes that may die: each file has a deadline, and who misses it is killed and replaced.

Validation and training both decode here, so that a file that hangs, crashes or eats memory costs one clip its
verdict and never the process that computes. Free of torch.
"""

import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from qlora_engine.data.decoder import REPLY, Judge, Reply, Take, Taken, Unusable, Usable
from qlora_engine.data.pictures import Size
from qlora_engine.data.sampling import Sampling
from qlora_engine.data.video import SampledClip
from qlora_engine.errors import ClipError, ClipTooSlow, ClipUndecodable, ClipWithoutVideo, FramesExceedClip

SECONDS_PER_FILE = 60.0
DECODED_BYTES_PER_SECOND = 1 << 20
"""What even a slow core decodes of a 1080p recording at a low bit rate."""
MOST_PROCESSES = 4
TRIES = 2
"""Of a clip that validation took: what stopped its decoder may have been the machine."""
LONGEST_LINE = 1 << 20
_REFUSALS: dict[str, type[ClipError]] = {
    refusal.code: refusal for refusal in (ClipUndecodable, ClipWithoutVideo, ClipTooSlow, FramesExceedClip)
}


class Decoders:
    """Up to `count` processes, started when needed; usable from any thread. Close it, or use it in `with`."""

    def __init__(self, count: int | None = None, seconds_per_file: float = SECONDS_PER_FILE) -> None:
        self.count = count or max(1, min(os.cpu_count() or 1, MOST_PROCESSES))
        self._seconds_per_file = seconds_per_file
        # The kernel kills a child when the thread that started it ends: one lasting thread starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="decoders")
        self._all = [_Decoder(self._starter) for _ in range(self.count)]
        self._free: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        for decoder in reversed(self._all):
            self._free.put(decoder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, whatever they do."""
        for decoder in self._all:
            decoder.stop()
        self._starter.shutdown()

    def judge(self, file: Path, path: str) -> Usable | Unusable:
        """What the file at `path` in its dataset holds, or why it cannot be used."""
        with self._one() as decoder:
            try:
                reply, _ = decoder.ask(Judge(file=str(file.absolute()), path=path), self.seconds_for(file))
            except ClipError as error:
                return Unusable(code=error.code, message=error.message)
        assert not isinstance(reply, Taken)  # noqa: S101 - an invariant
        return reply

    def sample(self, file: Path, sampling: Sampling, size: Size) -> SampledClip:
        """As `video.sample_clip`, in another process.

        Raises:
            ClipTooSlow: the deadline passed, twice.
            ClipUndecodable: the decoder died over it, twice, or as in `video.sample_clip`.
            ClipWithoutVideo, FramesExceedClip: as in `video.sample_clip`.
        """
        request = Take(file=str(file.absolute()), sampling=sampling, width=size.width, height=size.height)
        with self._one() as decoder:
            for last in (*[False] * (TRIES - 1), True):
                try:
                    reply, content = decoder.ask(request, self.seconds_for(file))
                    break
                except ClipError:
                    if last:
                        raise
        if isinstance(reply, Unusable):
            raise _REFUSALS.get(reply.code, ClipError)(reply.message, code=reply.code)
        assert isinstance(reply, Taken)  # noqa: S101 - an invariant
        shape = (len(reply.seconds), reply.height, reply.width, 3)
        pictures = np.frombuffer(content, np.uint8).reshape(shape)
        return SampledClip(tuple(pictures), reply.seconds, reply.duration)

    def seconds_for(self, file: Path) -> float:
        """More for large files: a long recording is no attack.

        Raises:
            ClipUndecodable: there is no such file.
        """
        try:
            size_bytes = file.stat().st_size
        except OSError as error:
            raise ClipUndecodable(
                f"{file.name} cannot be read ({error.strerror}); put the file back"
            ) from error
        return self._seconds_per_file + size_bytes / DECODED_BYTES_PER_SECOND

    @contextmanager
    def _one(self) -> Iterator["_Decoder"]:
        decoder = self._free.get()
        try:
            yield decoder
        finally:
            self._free.put(decoder)


@dataclass
class _Decoder:
    """One process, or the place where one will be."""

    starter: ThreadPoolExecutor
    _process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Judge | Take, seconds: float) -> tuple[Reply, bytearray]:
        """
        Raises:
            ClipTooSlow: there was no reply in time; the process is gone.
            ClipUndecodable: the process died.
        """
        name = Path(request.file).name
        process = self._running()
        assert process.stdin is not None  # noqa: S101 - an invariant
        deadline = time.monotonic() + seconds
        try:
            process.stdin.write(request.model_dump_json().encode() + b"\n")
            process.stdin.flush()
            line, rest = self._line(process, deadline)
            reply = REPLY.validate_json(line)
            if not isinstance(reply, Taken):
                return reply, rest
            wanted = len(reply.seconds) * reply.width * reply.height * 3
            return reply, self._read(process, rest, wanted, deadline)
        except TimeoutError:
            self.stop()
            raise ClipTooSlow(
                f"{name} takes longer than {seconds:.3g} s to decode; shorten it or scale it down"
            ) from None
        except (BrokenPipeError, EOFError, ValueError):
            self.stop()
            raise ClipUndecodable(f"{name} makes the decoder crash; convert it again") from None

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            self._process = self.starter.submit(_start).result()
        return self._process

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytearray]:
        received = bytearray()
        while (end := received.find(b"\n")) < 0:
            if len(received) > LONGEST_LINE:
                raise ValueError("the reply is no line")
            received += self._piece(process, deadline)
        return bytes(received[:end]), received[end + 1 :]

    def _read(
        self, process: subprocess.Popen[bytes], received: bytearray, count: int, deadline: float
    ) -> bytearray:
        while len(received) < count:
            received += self._piece(process, deadline)
        if len(received) > count:
            raise ValueError("the reply goes on")
        return received

    def _piece(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """
        Raises:
            TimeoutError, EOFError: nothing came in time, or nothing will.
        """
        assert process.stdout is not None  # noqa: S101 - an invariant
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        piece = os.read(process.stdout.fileno(), 1 << 20)
        if not piece:
            raise EOFError
        return piece


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "qlora_engine.data.decoder", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
