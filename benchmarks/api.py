"""How fast the REST API answers: job submissions by concurrent clients, and reads beside them.

Every client submits, reads its job back and lists the jobs, without a pause, so the service is saturated all
the time. No agent runs: what is measured is the control plane alone.
"""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.installation import Seeded, console, control_plane, scratch, seed
from benchmarks.report import Result, percentile
from kinora.client import Client
from schemas.ids import Prefix, new_id

CLIENTS = 20
ROUNDS = 5
SUBMISSIONS = 10
"""Of each client in each round: 1,000 in all."""
WARM_UP = 3

UNLIMITED = 10**9
"""What is measured is the service, not its rate limits."""


@dataclass
class Timings:
    """Seconds of every request, by what it was."""

    acknowledged: list[float] = field(default_factory=list)
    read_one: list[float] = field(default_factory=list)
    read_list: list[float] = field(default_factory=list)
    seconds: float = 0.0


def measure() -> list[Result]:
    """Run the benchmark; about two minutes."""
    with scratch() as folder:
        console.print("api: preparing an installation with a validated dataset and model …")
        return asyncio.run(_measure(seed(folder)))


async def _measure(seeded: Seeded) -> list[Result]:
    async with control_plane(seeded.folder) as plane:
        with Client(seeded.credentials) as session:
            token = await asyncio.to_thread(session.token)
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
        async with httpx.AsyncClient(
            base_url=f"{plane.url}/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            limits=limits,
            timeout=60,
            trust_env=False,
        ) as http:
            await _round(http, seeded, WARM_UP)
            rounds = []
            for number in range(ROUNDS):
                rounds.append(await _round(http, seeded, SUBMISSIONS))
                console.print(f"api: round {number + 1} of {ROUNDS}: {rounds[-1].seconds:.1f} s")
    return _results(rounds)


async def _round(http: httpx.AsyncClient, seeded: Seeded, submissions: int) -> Timings:
    timings = Timings()
    began = time.perf_counter()
    await asyncio.gather(*(_client(http, seeded, submissions, timings) for _ in range(CLIENTS)))
    timings.seconds = time.perf_counter() - began
    return timings


async def _client(http: httpx.AsyncClient, seeded: Seeded, submissions: int, timings: Timings) -> None:
    body = {
        "name": "benchmark",
        "dataset_id": seeded.dataset_id,
        "model_id": seeded.model_id,
        "hyperparameters": {"max_steps": 4, "frames": 2, "batch_size": 4},
    }
    for _ in range(submissions):
        key = {"Idempotency-Key": new_id(Prefix.COMMAND)}
        answer = await _timed(http.post("/jobs", json=body, headers=key), timings.acknowledged)
        job_id = answer.json()["id"]
        await _timed(http.get(f"/jobs/{job_id}"), timings.read_one, missing_ok=True)
        await _timed(http.get("/jobs", params={"limit": 50}), timings.read_list)


async def _timed(
    request: Awaitable[httpx.Response], into: list[float], *, missing_ok: bool = False
) -> httpx.Response:
    began = time.perf_counter()
    answer = await request
    into.append(time.perf_counter() - began)
    # A read without `min_position` may come before the projection.
    if not (missing_ok and answer.status_code == httpx.codes.NOT_FOUND):
        answer.raise_for_status()
    return answer


def _results(rounds: Sequence[Timings]) -> list[Result]:
    acknowledged = [value for found in rounds for value in found.acknowledged]
    one = [value for found in rounds for value in found.read_one]
    listed = [value for found in rounds for value in found.read_list]
    seconds = sum(found.seconds for found in rounds)
    requests = len(acknowledged) + len(one) + len(listed)

    def milliseconds(name: str, values: list[float], share: float, target: float | None = None) -> Result:
        return Result(f"{name} p{share * 100:g}", percentile(values, share) * 1000, "ms", target)

    return [
        milliseconds("submission acknowledged", acknowledged, 0.5),
        milliseconds("submission acknowledged", acknowledged, 0.95, 150),
        milliseconds("submission acknowledged", acknowledged, 0.99, 2000),
        milliseconds("read of one job", one, 0.5),
        milliseconds("read of one job", one, 0.95, 50),
        milliseconds("read of a page of 50 jobs", listed, 0.5),
        milliseconds("read of a page of 50 jobs", listed, 0.95, 50),
        Result("submissions", len(acknowledged) / seconds, "1/s"),
        Result("requests", requests / seconds, "1/s"),
    ]
