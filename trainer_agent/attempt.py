"""One attempt, from the granted claim to its last report.

    1 accept     the spool is opened, `Accepted` is reported
    2 stage      inputs are downloaded and verified, the engine's spec is made
    3 engine     the engine runs; its updates become reports, telemetry and log lines
    4 artifacts  what it made is stored
    5 end        one last report, or two; all reports are delivered; the folder is removed

What differs between training and validating stands behind `Work`. Orders (`orders`) may end each step
early; `_carries_on` says which do.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

import structlog
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from qlora_engine.updates import EngineFailed, Update
from schemas.ids import id_prefix
from schemas.training import DOES_NOT_FIT, EngineSpec
from schemas.work import Accepted, Declined, Failed, HeldItem, Released, ReportBody, Warned
from trainer_agent.engine_process import EngineProcess
from trainer_agent.engine_spans import EngineSpans
from trainer_agent.errors import AgentError, EngineFailure, ReportTooLarge, no_room
from trainer_agent.folders import AttemptFolder
from trainer_agent.metrics import ATTEMPTS
from trainer_agent.orders import Order, Orders
from trainer_agent.reporter import Reporter
from trainer_agent.settings import AgentSettings
from trainer_agent.silence import Silence
from trainer_agent.spool import Spool
from trainer_agent.waiting import end

log = structlog.get_logger()
_tracer = trace.get_tracer(__name__)

_SALVAGE_SECONDS = 60.0
_SALVAGE_SECONDS_WHEN_STOPPED = 10.0
_LAST_REPORT_SECONDS = 3.0
"""A shutdown's time is up, but giving the attempt back is worth a moment more."""
_LONGEST_MESSAGE = 2000

Ending = tuple[ReportBody, ...]


class Work(Protocol):
    """One kind of work."""

    def beside(self) -> AbstractAsyncContextManager[Any]:
        """What runs in the background for the whole attempt."""
        ...

    async def stage(self) -> EngineSpec:
        """Bring the inputs here."""
        ...

    async def follow(self, update: Update) -> bool:
        """Report `update`; True when it was the engine's last word."""
        ...

    def can_save(self) -> bool:
        """Whether a graceful stop of the engine would save something."""
        ...

    def is_finished(self) -> bool:
        """Whether the engine's work is done, so that only a shutdown or another owner may end it now."""
        ...

    async def conclude(self, order: Order) -> Ending:
        """Store the engine's output; the reports that end the attempt."""
        ...

    async def salvage(self, ending: Ending) -> None:
        """After an end in the middle, reported as `ending`: store what is worth keeping."""
        ...

    def stopped(self) -> Ending:
        """The reports for an end that was asked for, before or in the middle of the work."""
        ...


class Attempt:
    """The course of one attempt."""

    def __init__(
        self,
        work: Work,
        *,
        held: HeldItem,
        folder: AttemptFolder,
        spool: Spool,
        reporter: Reporter,
        orders: Orders,
        settings: AgentSettings,
    ) -> None:
        self._work = work
        self._held = held
        self._folder = folder
        self._spool = spool
        self._reporter = reporter
        self._orders = orders
        self._settings = settings
        self._shutdown_seconds = settings.shutdown_seconds
        self._save_until: float | None = None
        """When an engine that was asked to stop is out of patience."""
        self._engine: EngineProcess | None = None
        self._step: Literal["stage", "engine", "artifacts"] = "stage"

    async def run(self) -> None:
        """Returns when nothing is left to do; the spool's file stays only if reports are left to deliver."""
        try:
            async with self._work.beside():
                ending = await self._ending()
            if ending is not None:
                await self._report(ending)
            await self._bounded(self._reporter.drained(), None, grace=_LAST_REPORT_SECONDS)
            if self._abandoned():
                log.info("attempt_abandoned")
                self._spool.discard()
            elif self._spool.first_unacknowledged() is None and self._spool.ended:
                self._spool.discard()
        finally:
            await asyncio.to_thread(self._folder.remove)

    async def _report(self, ending: Ending) -> None:
        kinds = [body.kind for body in ending]
        log.info("attempt_ended", ending=kinds)
        ATTEMPTS.labels(id_prefix(self._held.item_id).name.lower(), kinds[-1]).inc()
        span = trace.get_current_span()
        span.set_attribute("kinora.ending", kinds)
        for body in ending:
            if isinstance(body, Failed):
                span.set_attribute("error.type", body.code)
                span.set_status(Status(StatusCode.ERROR, body.message))
        try:
            for body in ending:
                await self._reporter.report(body)
        except ReportTooLarge as error:
            await self._reporter.report(self._failed(error))

    async def _ending(self) -> Ending | None:
        """The last reports; None when there is nobody to report to."""
        try:
            ending = await self._supervised()
        except AgentError as error:
            log.warning("attempt_failed", code=error.code, error=error.message)
            # Another node may have the room that this one lacks.
            unfit = isinstance(error, EngineFailure) and error.code == DOES_NOT_FIT
            ending = (Declined(reason=self._failed(error).message) if unfit else self._failed(error),)
        except Exception as error:
            # A door: whatever a bug in this agent raises, the job must learn that this attempt is over.
            log.exception("attempt_broke")
            broken = AgentError(f"the agent failed with {type(error).__name__}: {error}")
            ending = (self._failed(no_room(error, "this attempt") or broken),)
        else:
            if ending is not None and self._step == "artifacts":
                return ending
        if ending is None or self._abandoned():
            return None
        stopped = self._orders.order >= Order.STOP
        await self._bounded(
            self._work.salvage(ending), _SALVAGE_SECONDS_WHEN_STOPPED if stopped else _SALVAGE_SECONDS
        )
        return None if self._abandoned() else ending

    async def _supervised(self) -> Ending | None:
        """Do the work and carry out what orders come meanwhile; the work is over when this returns."""
        course = asyncio.create_task(self._course())
        seen = 0  # whatever was ordered before this attempt's first step counts, too
        try:
            while True:
                await self._wait(course, seen, self._seconds_left())
                if course.done():
                    return course.result()
                seen, order = self._orders.news, self._orders.order
                if self._save_until is not None and _now() >= self._save_until:
                    return self._give_up_saving(order)
                out_of_time = self._orders.seconds_left(self._shutdown_seconds) == 0.0
                if out_of_time or not await self._carries_on(order):
                    log.info("attempt_cut", order=order.name, step=self._step, out_of_time=out_of_time)
                    return self._cut_short(order)
        finally:
            await end(course)

    async def _carries_on(self, order: Order) -> bool:
        """Whether the work may go on under `order`, if only to save what it has."""
        match order:
            case Order.CARRY_ON:
                return True
            case Order.ABANDON:
                return False
            case _ if self._work.is_finished():
                return True  # the result is nearly stored; only a shutdown's time limit may cut this
            case Order.STOP_NOW:
                return False
            case _ if self._step == "artifacts":
                return True
            case _ if self._engine is None or not self._work.can_save():
                return False
            case _:
                await self._engine.stop("graceful")
                if self._save_until is None:
                    self._save_until = _now() + self._settings.engine_stop_seconds
                return True

    def _seconds_left(self) -> float | None:
        """Until a shutdown's time, or that of a graceful stop, is up."""
        limits = [self._orders.seconds_left(self._shutdown_seconds)]
        if self._save_until is not None:
            limits.append(max(0.0, self._save_until - _now()))
        return min((limit for limit in limits if limit is not None), default=None)

    def _give_up_saving(self, order: Order) -> Ending | None:
        seconds = self._settings.engine_stop_seconds
        log.warning("engine_does_not_stop", seconds=seconds)
        message = (
            f"the engine did not stop within {seconds:g} s of being asked to and was killed;"
            " what it learnt since its last stored checkpoint is lost"
        )
        ending = self._cut_short(order)
        return None if ending is None else (Warned(code="stop_escalated", message=message), *ending)

    def _cut_short(self, order: Order) -> Ending | None:
        if order is Order.ABANDON:
            return None
        if order is Order.SHUT_DOWN or self._work.is_finished():
            return (Released(reason="the agent is shutting down"),)
        return self._work.stopped()

    async def _course(self) -> Ending:
        await self._reporter.report(Accepted())
        await asyncio.to_thread(self._folder.create)
        with _tracer.start_as_current_span("stage inputs"):
            spec = await self._work.stage()
        self._step = "engine"
        with _tracer.start_as_current_span("run engine"):
            await self._run_engine(spec)
        self._step = "artifacts"
        with _tracer.start_as_current_span("store results"):
            return await self._work.conclude(self._orders.order)

    async def _run_engine(self, spec: EngineSpec) -> None:
        """Follow the engine to its last word.

        Raises:
            EngineDied: it ended without one; as an `EngineFailure` when it said what failed.
        """
        log_file = self._folder.log_file
        async with EngineProcess(folder=self._folder.path, log_file=log_file, spec=spec) as engine:
            log.info("engine_started", pid=engine.pid)
            self._engine = engine
            try:
                with EngineSpans(engine.pid) as spans:
                    await self._follow(engine, spans)
            finally:
                self._engine = None

    async def _follow(self, engine: EngineProcess, spans: EngineSpans) -> None:
        async for update in engine.updates(Silence(self._settings.engine_silence_seconds)):
            if spans.follow(update):
                continue
            if isinstance(update, EngineFailed):
                raise EngineFailure(update.message, code=update.code, retryable=update.retryable)
            if await self._work.follow(update):
                self._engine = None
                self._save_until = None
                return await engine.finish()
        raise await engine.death()

    def _failed(self, error: AgentError) -> Failed:
        # Where this node keeps its files is nobody's business, and no help to whoever reads the job.
        message = error.message.replace(f"{self._folder.path}/", "")
        return Failed(code=error.code, message=message[:_LONGEST_MESSAGE], retryable=error.retryable)

    def _abandoned(self) -> bool:
        return self._orders.order is Order.ABANDON

    async def _bounded(
        self, work: Coroutine[Any, Any, None], seconds: float | None, *, grace: float = 0.0
    ) -> None:
        """Do `work` until it is done, `seconds` or a shutdown's time are over, or the attempt is not ours."""
        task = asyncio.create_task(work)
        give_up = None if seconds is None else _now() + seconds
        try:
            while not task.done() and not self._abandoned():
                left = self._orders.seconds_left(self._shutdown_seconds + grace)
                limits = [left] if left is not None else []
                limits += [max(0.0, give_up - _now())] if give_up is not None else []
                if not await self._wait(task, self._orders.news, min(limits, default=None)):
                    log.info("out_of_time")
                    return
        finally:
            await end(task)

    async def _wait(self, task: asyncio.Task[Any], seen: int, seconds: float | None) -> bool:
        """Wait for `task` or for news of orders; False when `seconds` passed without either."""
        news = asyncio.create_task(self._orders.news_after(seen))
        done, _ = await asyncio.wait({task, news}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        await end(news)
        return bool(done)


def _now() -> float:
    return asyncio.get_running_loop().time()
