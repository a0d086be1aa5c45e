"""How fast the REST API answers 20 clients at once, none of which ever pauses.

First every client submits jobs, one after the other; then every client reads, a job and a page of jobs in
turn. The service is saturated all the time, which is the worst case. No agent runs: what is measured is the
control plane, with relay, policies and projections at work on the same cores, and the clients too.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

from benchmarks.installation import UNLIMITED, Seeded, console, control_plane, scratch, seed
from benchmarks.report import Result, percentile
from kinora.client import Client
from schemas.ids import Prefix, new_id

CLIENTS = 20
ROUNDS = 5
SUBMISSIONS = 20
"""Of each client in each round: 2,000 in all."""
READS = 40
WARM_UP = 3


@dataclass
class Round:
    """Seconds of every request, by what it was."""

    acknowledged: list[float] = field(default_factory=list)
    read_one: list[float] = field(default_factory=list)
    read_page: list[float] = field(default_factory=list)
    submitting_seconds: float = 0.0
    reading_seconds: float = 0.0


def measure() -> list[Result]:
    """Run the benchmark; about two minutes."""
    with scratch() as folder:
        console.print("api: preparing an installation with a validated dataset and model …")
        return asyncio.run(_measure(seed(folder)))


async def _measure(seeded: Seeded) -> list[Result]:
    async with control_plane(seeded.folder, UNLIMITED) as plane:
        with Client(seeded.credentials) as session:
            token = await asyncio.to_thread(session.token)
        async with aiohttp.ClientSession(
            base_url=f"{plane.url}/api/v1/",
            headers={"Authorization": f"Bearer {token}"},
            connector=aiohttp.TCPConnector(limit=CLIENTS),
            raise_for_status=True,
        ) as http:
            load = Load(http, seeded)
            await load.round(WARM_UP, WARM_UP)
            rounds = []
            for number in range(1, ROUNDS + 1):
                rounds.append(await load.round(SUBMISSIONS, READS))
                console.print(
                    f"api: round {number} of {ROUNDS}: {SUBMISSIONS * CLIENTS} submissions in"
                    f" {rounds[-1].submitting_seconds:.1f} s, {READS * CLIENTS} reads in"
                    f" {rounds[-1].reading_seconds:.1f} s"
                )
    return _results(rounds)


@dataclass
class Load:
    """The clients, and the jobs that they submitted."""

    http: aiohttp.ClientSession
    seeded: Seeded
    jobs: list[str] = field(default_factory=list)

    async def round(self, submissions: int, reads: int) -> Round:
        """Submissions, then reads."""
        found = Round()
        found.submitting_seconds = await _together(lambda: self._submit(submissions, found))
        found.reading_seconds = await _together(lambda: self._read(reads, found))
        return found

    async def _submit(self, count: int, found: Round) -> None:
        body = {
            "name": "benchmark",
            "dataset_id": self.seeded.dataset_id,
            "model_id": self.seeded.model_id,
            "hyperparameters": {"max_steps": 4, "frames": 2, "batch_size": 4},
        }
        for _ in range(count):
            key = {"Idempotency-Key": new_id(Prefix.COMMAND)}
            began = time.perf_counter()
            async with self.http.post("jobs", json=body, headers=key) as answer:
                job = await answer.json()
            found.acknowledged.append(time.perf_counter() - began)
            self.jobs.append(job["id"])

    async def _read(self, count: int, found: Round) -> None:
        for number in range(count):
            # The newest may not have been projected yet.
            job_id = random.choice(self.jobs[: len(self.jobs) // 2])
            path, times = (f"jobs/{job_id}", found.read_one) if number % 2 else ("jobs", found.read_page)
            began = time.perf_counter()
            async with self.http.get(path) as answer:
                await answer.read()
            times.append(time.perf_counter() - began)


async def _together(client: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return time.perf_counter() - began


def _results(rounds: Sequence[Round]) -> list[Result]:
    acknowledged = [value for found in rounds for value in found.acknowledged]
    one = [value for found in rounds for value in found.read_one]
    pages = [value for found in rounds for value in found.read_page]

    def milliseconds(name: str, values: list[float], share: float, target: float | None = None) -> Result:
        return Result(f"{name} p{share * 100:g}", percentile(values, share) * 1000, "ms", target)

    return [
        milliseconds("submission acknowledged", acknowledged, 0.5),
        milliseconds("submission acknowledged", acknowledged, 0.95, 150),
        milliseconds("submission acknowledged", acknowledged, 0.99, 2000),
        milliseconds("read of a job", one, 0.5),
        milliseconds("read of a job", one, 0.95, 50),
        milliseconds("read of 50 jobs", pages, 0.5),
        milliseconds("read of 50 jobs", pages, 0.95, 50),
        Result("submissions", len(acknowledged) / sum(found.submitting_seconds for found in rounds), "1/s"),
        Result("reads", (len(one) + len(pages)) / sum(found.reading_seconds for found in rounds), "1/s"),
    ]
