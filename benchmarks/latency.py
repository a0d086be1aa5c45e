"""How long after its commit an event reaches WebSocket clients: 300 events/s, 200 clients.

Ten clients follow everything and 190 one job each. The events are progress reports of 190 running jobs,
decided and committed by the product's own command bus in this process; the API serves the feed from its own,
with relay and projections at work on the same cores, and the clients in a third process.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
import psutil

from benchmarks.installation import UNLIMITED, ControlPlane, Seeded, console, control_plane, scratch, seed
from benchmarks.report import Result, percentile
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context
from command_api.handlers.bus import CommandBus
from command_api.handlers.registry import HANDLERS
from kinora.client import Client
from schemas import work
from schemas.commands import Command
from schemas.commands.job import ClaimJob, ReportAttempt
from schemas.events.job import ProgressPoint
from schemas.ids import Prefix, new_id

EVENTS_PER_SECOND = 300
SECONDS = 20
QUICK_SECONDS = 5
WARM_UP_SECONDS = 3
"""Not counted: caches fill and connections settle."""
FOLLOWERS = 10
JOBS = 190
SETTLE_SECONDS = 10.0
LONG_LEASE = {"lease_seconds": 3600.0}
"""Nobody sends heartbeats for these jobs."""


@dataclass
class Times:
    """Monotonic seconds by position."""

    submitted: dict[int, float] = field(default_factory=dict)
    committed: dict[int, float] = field(default_factory=dict)
    api_share: float = 0.0
    """Of one core, that the API used meanwhile."""


@dataclass
class Reporter:
    """The agent's side of every job: claims it and reports, as the inbox hands reports on."""

    bus: CommandBus
    seeded: Seeded
    workspace_id: str
    sequences: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    async def begin(self, job_id: str) -> None:
        """From queued to training."""
        await self._execute(ClaimJob(job_id=job_id, agent_id=self.seeded.agent_id, attempt=1))
        await self._report(job_id, work.Accepted())
        started = work.Started(
            start_step=0,
            total_steps=1_000_000,
            trainable_parameters=100,
            total_parameters=1000,
            training_examples=32,
            held_out_examples=8,
            device="cpu",
        )
        await self._report(job_id, started)

    async def progress(self, job_id: str, times: Times | None) -> None:
        """One more step; one event."""
        step = self.steps[job_id] = self.steps.get(job_id, 0) + 1
        point = ProgressPoint(
            step=step,
            loss=1.0 / step,
            learning_rate=1e-4,
            grad_norm=1.0,
            tokens=64,
            tokens_per_second=640.0,
            step_seconds=0.1,
        )
        submitted = time.monotonic()
        body = work.Progressed(step=step, total_steps=1_000_000, epoch=1.0, points=(point,))
        position = await self._report(job_id, body)
        if times is not None:
            times.submitted[position], times.committed[position] = submitted, time.monotonic()

    async def _report(self, job_id: str, body: work.ReportBody) -> int:
        sequence = self.sequences[job_id] = self.sequences.get(job_id, 0) + 1
        report = work.Report(
            item_id=job_id, attempt=1, sequence=sequence, occurred_at=datetime.now(UTC), body=body
        )
        return await self._execute(ReportAttempt(agent_id=self.seeded.agent_id, report=report))

    async def _execute(self, command: Command) -> int:
        context = Context.system(
            "benchmark",
            organization_id=self.seeded.credentials.organization_id,
            workspace_id=self.workspace_id,
        )
        return (await self.bus.execute(command, context)).position


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark; about two minutes."""
    seconds = QUICK_SECONDS if quick else SECONDS
    with scratch() as folder:
        console.print("latency: preparing an installation with a validated dataset and model …")
        return asyncio.run(_measure(seed(folder), seconds))


async def _measure(seeded: Seeded, seconds: int) -> list[Result]:
    async with control_plane(seeded.folder, {**UNLIMITED, "orchestrator": LONG_LEASE}) as plane:
        with Client(seeded.credentials) as session:
            token = await asyncio.to_thread(session.token)
            me = await asyncio.to_thread(session.get, "/users/me")
        console.print(f"latency: requesting {JOBS} jobs …")
        jobs = await _queued_jobs(plane, seeded, token)
        log = await asyncio.to_thread(EventLog.open, plane.servers.postgres)
        try:
            async with CommandBus(log, HANDLERS) as bus:
                reporter = Reporter(bus, seeded, me["workspace_id"])
                await asyncio.gather(*(reporter.begin(job_id) for job_id in jobs))
                times, seen = await _follow_and_report(plane, token, jobs, reporter, seconds)
        finally:
            await asyncio.to_thread(log.close)
    return _results(times, seen)


async def _queued_jobs(plane: ControlPlane, seeded: Seeded, token: str) -> list[str]:
    async with aiohttp.ClientSession(
        base_url=f"{plane.url}/api/v1/",
        headers={"Authorization": f"Bearer {token}"},
        connector=aiohttp.TCPConnector(limit=10),
    ) as http:

        async def request(number: int) -> str:
            body = {
                "name": f"benchmark {number}",
                "dataset_id": seeded.dataset_id,
                "model_id": seeded.model_id,
                "hyperparameters": {"frames": 2},
            }
            key = {"Idempotency-Key": new_id(Prefix.COMMAND)}
            async with http.post("jobs", json=body, headers=key, raise_for_status=True) as answer:
                job_id: str = (await answer.json())["id"]
            while True:
                async with http.get(f"jobs/{job_id}") as answer:
                    if answer.status == 200 and (await answer.json())["status"] == "queued":
                        return job_id
                await asyncio.sleep(0.2)

        return list(await asyncio.gather(*(request(number) for number in range(JOBS))))


async def _follow_and_report(
    plane: ControlPlane, token: str, jobs: Sequence[str], reporter: Reporter, seconds: int
) -> tuple[Times, list[list[tuple[int, float]]]]:
    url = plane.url.replace("http", "ws", 1) + "/api/v1/events/ws"
    clients = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.feed_clients",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**28,
    )
    assert clients.stdin is not None
    assert clients.stdout is not None
    plan = {"url": url, "token": token, "followers": FOLLOWERS, "jobs": list(jobs)}
    clients.stdin.write(json.dumps(plan).encode() + b"\n")
    await clients.stdin.drain()
    if (await clients.stdout.readline()).strip() != b"ready":
        raise RuntimeError("the feed's clients could not connect; see above")
    console.print(f"latency: {EVENTS_PER_SECOND} events/s for {seconds} s …")
    times = Times()
    await _report_at_rate(reporter, jobs, WARM_UP_SECONDS, None)
    api = psutil.Process(int((plane.servers.folder.run / "api.ready").read_text())).cpu_times
    before = api()
    await _report_at_rate(reporter, jobs, seconds, times)
    after = api()
    times.api_share = (after.user + after.system - before.user - before.system) / seconds
    await asyncio.sleep(SETTLE_SECONDS)
    clients.stdin.close()
    output = await clients.stdout.readline()
    await clients.wait()
    return times, json.loads(output)


async def _report_at_rate(reporter: Reporter, jobs: Sequence[str], seconds: int, times: Times | None) -> None:
    """An open loop: a slow service gets no fewer events."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(seconds * EVENTS_PER_SECOND):
            wait = began + number / EVENTS_PER_SECOND - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            # A job's reports come one after the other; its turn comes again after JOBS others.
            group.create_task(reporter.progress(jobs[number % len(jobs)], times))


def _results(times: Times, seen: Sequence[Sequence[tuple[int, float]]]) -> list[Result]:
    arrived = [(position, at) for client in seen for position, at in client if position in times.committed]
    since_commit = [max(0.0, at - times.committed[position]) * 1000 for position, at in arrived]
    since_submission = [(at - times.submitted[position]) * 1000 for position, at in arrived]
    expected = (FOLLOWERS + 1) * len(times.committed)
    appended = [
        (times.committed[position] - submitted) * 1000 for position, submitted in times.submitted.items()
    ]
    return [
        Result("committed to frame p50", percentile(since_commit, 0.5), "ms", 10),
        Result("committed to frame p99", percentile(since_commit, 0.99), "ms", 50),
        Result("submitted to frame p50", percentile(since_submission, 0.5), "ms"),
        Result("submitted to frame p99", percentile(since_submission, 0.99), "ms"),
        Result("submitted to committed p50", percentile(appended, 0.5), "ms"),
        Result("submitted to committed p99", percentile(appended, 0.99), "ms"),
        Result("processor share of the API", times.api_share * 100, "% of a core"),
        Result("frames", float(len(arrived)), "frames"),
        Result("frames missing or doubled", float(abs(expected - len(arrived))), "frames", 0),
    ]
