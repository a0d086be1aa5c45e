"""Puts virtual time, seeded chance and strands where our modules expect clocks, ids, threads and queues."""

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import eventsourcing.utils

from schemas import ids
from tests.simulation.scheduler import SimulatedLoop, Strand, current_strand

EPOCH = 1_790_000_000.0
"""Unix time at which every simulation begins, less the loop's own."""

_OURS = ("command_api", "projections", "schemas")


class Queue:
    """`queue.SimpleQueue` between strands and coroutines."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: deque[Callable[[Any], None]] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        while self._waiting:
            self._waiting.popleft()(True)

    def put_nowait(self, item: Any) -> None:
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        strand = current_strand()
        while not self._items:
            if not block:
                raise queue.Empty
            self._waiting.append(strand.waker())
            if strand.block(timeout) is None:
                raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)


def _threads(loop: SimulatedLoop) -> SimpleNamespace:
    class Thread:
        """`threading.Thread` on a strand."""

        def __init__(
            self,
            target: Callable[..., Any],
            name: str = "",
            args: tuple[Any, ...] = (),
            daemon: bool | None = None,
        ) -> None:
            self._body = lambda: target(*args)
            self.name = name
            self._strand: Strand | None = None

        def start(self) -> None:
            self._strand = loop.strand(self._body)

        def is_alive(self) -> bool:
            return self._strand is not None and not self._strand.future.done()

        def join(self, timeout: float | None = None) -> None:
            assert self._strand is not None
            strand = current_strand()
            if not self._strand.future.done():
                wake = strand.waker()
                self._strand.future.add_done_callback(wake)
                strand.block(timeout)

    # No strand gives the floor away while it holds one of the guards, so real ones never block.
    return SimpleNamespace(
        Thread=Thread,
        Lock=threading.Lock,
        RLock=threading.RLock,
        Condition=threading.Condition,
        get_ident=threading.get_ident,
        current_thread=threading.current_thread,
    )


@contextmanager
def virtual(loop: SimulatedLoop) -> Iterator[None]:
    """Our modules see the simulated world for as long as the context lasts."""

    def sleep(seconds: float) -> None:
        current_strand().block(seconds)

    def unix() -> float:
        return EPOCH + loop.time()

    clock = SimpleNamespace(
        monotonic=loop.time,
        perf_counter=loop.time,
        process_time=loop.time,
        thread_time=loop.time,
        time=unix,
        time_ns=lambda: int(unix() * 1e9),
        monotonic_ns=lambda: int(loop.time() * 1e9),
        sleep=sleep,
    )
    shims: dict[ModuleType, Any] = {
        time: clock,
        threading: _threads(loop),
        queue: SimpleNamespace(SimpleQueue=Queue, Queue=Queue, Empty=queue.Empty),
    }
    chance = SimpleNamespace(
        randbits=loop.random.getrandbits,
        token_hex=lambda n=16: loop.random.randbytes(n).hex(),
        token_bytes=lambda n=16: loop.random.randbytes(n),
    )
    patches = [
        mock.patch.object(module, name, shims[value])
        for module in list(sys.modules.values())
        if module is not None and module.__name__.partition(".")[0] in _OURS
        for name, value in list(vars(module).items())
        if isinstance(value, ModuleType) and value in shims
    ]
    patches += [
        mock.patch.object(ids, "secrets", chance),
        mock.patch.object(ids._TICKS, "_clock_ns", clock.time_ns),
        mock.patch.object(ids._TICKS, "_last", 0),
        mock.patch.object(eventsourcing.utils, "sleep", sleep),
        mock.patch.object(eventsourcing.utils, "random", loop.random.random),
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


__all__ = ["EPOCH", "Queue", "virtual"]
