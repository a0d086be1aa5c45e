"""One thread, one virtual clock, one seed: whatever happens in a simulation happens here, in one order.

Coroutines run on an event loop that never waits: when nobody is ready, the clock jumps to the next timer.
Synchronous code, such as the writer's thread, runs on a `Strand`: a stack of its own that gives the floor
back wherever a thread would block. So at any moment one piece of code runs, and who is next follows from
virtual time alone. Chance comes in through `random` only: how long each message travels, and what fails.

Callbacks that are ready together run in the order in which they became ready, as asyncio promises; what real
machines leave open (which answer comes first) is left to the random travel times.
"""

import asyncio
import heapq
import random
from asyncio import events
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context, ContextVar, copy_context
from typing import Any

import greenlet

MAX_STEPS = 400_000
"""Far more than any run needs: whoever reaches it goes round in circles."""


class Stalled(Exception):
    """Nobody is ready and no timer runs: everybody waits for somebody else."""


class Livelock(Exception):
    """The run does not come to an end."""


class ModelIncomplete(BaseException):
    """Our code asked a model for something that it does not know: the model has to follow the code."""


class Ended(BaseException):
    """Code of a dead process went on; what it asks for no longer happens."""


class Process:
    """What lives and dies together: tasks, strands and connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.held: list[asyncio.Handle] = []
        """What became ready while the process was frozen."""
        self.tasks: list[asyncio.Task[Any]] = []
        self.strands: list[Strand] = []
        self.on_death: list[Callable[[], None]] = []


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
NOWHERE = Context()
"""What happens on the network and inside servers belongs to no process."""


def check_alive() -> None:
    process = PROCESS.get()
    if process is not None and not process.alive:
        raise Ended(process.name)


class Task(asyncio.Task):  # type: ignore[type-arg]
    """Sets of tasks are iterated by hash, which must not depend on where an object lies."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class Future(asyncio.Future):  # type: ignore[type-arg]
    """As `Task`."""

    number = 0

    def __hash__(self) -> int:
        return self.number


_TIMED_OUT = object()


class Strand(greenlet.greenlet):
    """Synchronous code with a stack of its own."""

    def __init__(self, loop: "SimulatedLoop", body: Callable[[], Any], context: Context) -> None:
        super().__init__(self._run, parent=loop.hub)
        self.gr_context = context.copy()
        self._loop = loop
        self._body = body
        self._context = context
        self._token: object | None = None
        self._armed: object | None = None
        self.doom: BaseException | None = None
        self.future: asyncio.Future[Any] = loop.create_future()
        self.process = context.get(PROCESS)
        loop.strands[id(self)] = self
        if self.process is not None:
            self.process.strands.append(self)

    def _run(self) -> None:
        try:
            outcome = self._body()
        except ModelIncomplete as error:
            self._loop.failure = error
            self.future.cancel()
        except (Ended, greenlet.GreenletExit):
            self.future.cancel()
        except BaseException as error:
            if not self.future.done():
                self.future.set_exception(error)
                self.future.exception()
        else:
            if not self.future.done():
                self.future.set_result(outcome)
        finally:
            self._loop.strands.pop(id(self), None)

    def begin(self) -> None:
        if self.doom is not None:
            self.future.cancel()
            self._loop.strands.pop(id(self), None)
        elif not self.dead:
            self.switch()

    def block(self, timeout: float | None = None) -> Any:
        """Give the floor away until `wake`; the value given to it, or None when the time is over."""
        if self.doom is not None:
            raise self.doom
        if self._loop.over:
            raise Ended
        token = self._token = self._armed or object()
        self._armed = None
        timer = None
        if timeout is not None:
            timer = self._loop.call_later(timeout, self._resume, token, _TIMED_OUT, context=self._context)
        try:
            outcome = self._loop.hub.switch()
        finally:
            self._token = None
            if timer is not None:
                timer.cancel()
        if self.doom is not None:
            raise self.doom
        if isinstance(outcome, BaseException):
            raise outcome
        return None if outcome is _TIMED_OUT else outcome

    def waker(self) -> Callable[[Any], None]:
        """Wakes the next `block` and no later one; waking twice, or too late, does nothing."""
        loop, context = self._loop, self._context
        token = self._armed = object()

        def wake(value: Any) -> None:
            loop.call_soon(self._resume, token, value, context=context)

        return wake

    def _resume(self, token: object, value: Any) -> None:
        if self._token is token and not self.dead:
            self.switch(value)

    @property
    def blocked(self) -> bool:
        return self._token is not None

    def kill(self, error: BaseException) -> None:
        """Let the strand end with `error` as soon as it has the floor."""
        self.doom = error
        if self._token is not None:
            self._loop.call_soon(self._resume, self._token, error, context=self._context)


def current_strand() -> Strand:
    one = greenlet.getcurrent()
    if not isinstance(one, Strand):
        raise AssertionError("this blocks the event loop")  # noqa: TRY004
    return one


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop whose clock jumps."""

    def __init__(self, seed: int | str) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.hub = greenlet.getcurrent()
        self.steps = 0
        self.failure: BaseException | None = None
        self.trace: list[str] = []
        self.over = False
        self.strands: dict[int, Strand] = {}
        self._now = 1000.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self._tasks_made = 0
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._on_exception)

    # ---- time -----------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def leap(self, seconds: float) -> None:
        """The whole machine slept: nobody noticed, and every timer is late."""
        self._now += seconds

    def note(self, text: str) -> None:
        """A line of the trace, which is read when a seed fails."""
        self.trace.append(f"{self._now - 1000:9.3f}  {text}")

    # ---- running --------------------------------------------------------------------------------

    def _run_once(self) -> None:
        timers = self._timers
        ready = self._ready  # type: ignore[attr-defined]
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready:
            if not timers:
                raise Stalled
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None and process.frozen:
                process.held.append(handle)
                continue
            self.steps += 1
            handle._run()
        if self.failure is not None:
            raise self.failure
        if self.steps > MAX_STEPS and not self.over:
            raise Livelock(f"{self.steps} steps at {self._now - 1000:.3f} s")

    def create_future(self) -> Future:
        future = Future(loop=self)
        self._tasks_made += 1
        future.number = self._tasks_made
        return future

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        return self.strand(lambda: func(*args)).future

    def strand(self, body: Callable[[], Any], context: Context | None = None) -> Strand:
        """Run synchronous code on a stack of its own."""
        context = context or copy_context()
        one = Strand(self, body, context)
        self.call_soon(one.begin, context=context)
        return one

    def strand_now(self, body: Callable[[], Any]) -> Strand:
        """The same for the inside of a server, and at once; only for callbacks of the event loop."""
        one = Strand(self, body, NOWHERE)
        one.begin()
        return one

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> Task:
        process = PROCESS.get()
        Task.number = self._tasks_made = self._tasks_made + 1  # hashed already while it is being made
        task = Task(coroutine, loop=loop, **options)
        task.number = self._tasks_made
        if process is not None:
            process.tasks.append(task)
        return task

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, ModelIncomplete | AssertionError):
            self.failure = error
        else:
            self.note(f"loop: {context.get('message')}: {error!r}")

    # ---- processes ------------------------------------------------------------------------------

    def spawn(self, process: Process, main: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Run `main` as (a part of) a process."""
        context = Context()
        context.run(PROCESS.set, process)
        return context.run(self.create_task, main())

    def kill(self, process: Process) -> None:
        """SIGKILL: whatever its code still does no longer reaches anybody."""
        if not process.alive:
            return
        process.alive = False
        self.thaw(process)
        for act in process.on_death:
            act()
        for strand in process.strands:
            if not strand.dead:
                strand.kill(Ended(process.name))
        self._bury(process)

    def _bury(self, process: Process) -> None:
        alive = [task for task in process.tasks if not task.done()]
        for task in alive:
            task.cancel()
        if alive:
            self.call_later(0.05, self._bury, process, context=NOWHERE)

    def freeze(self, process: Process) -> None:
        """SIGSTOP: its connections stay, its code stands still."""
        process.frozen = True

    def thaw(self, process: Process) -> None:
        """SIGCONT."""
        if process.frozen:
            process.frozen = False
            self._ready.extend(process.held)  # type: ignore[attr-defined]
            process.held.clear()

    # ---- BaseEventLoop's blanks -----------------------------------------------------------------

    def _write_to_self(self) -> None: ...

    def _process_events(self, event_list: list[object]) -> None: ...


def run(loop: SimulatedLoop, main: Coroutine[Any, Any, Any]) -> Any:
    """Run `main` to its end, and leave nothing behind."""
    loop.hub = greenlet.getcurrent()
    events.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        _clear(loop)
        events.set_event_loop(None)
        loop.close()


def _clear(loop: SimulatedLoop) -> None:
    """End every strand and task; nothing that they still try reaches anybody."""
    loop.over = True
    loop.failure = None
    for strand in list(loop.strands.values()):
        if strand and not strand.dead:  # one that never began has nothing to end
            strand.throw(Ended("the simulation is over"))
    for _ in range(20):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            return
        for task in sorted(tasks, key=hash):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(1.0))
