"""Trouble for as long as one likes, judged by the checkers of the fault tests. Half of the time each:

- a stream of tiny jobs on a real `kinora up` whose processes are killed or frozen at random all the while; no
  job may be lost, none may end twice, and what a client of the feed saw must be the log;
- the black box of `tests/faults/black_box.py`: callers and readers of a control plane whose processes,
  servers and wires fail.

With `mutations` instead: the checkers are checked with known faults in the processes' own code
(`tests/faults/planted.py`), each of which has to be found, however long the minutes are.

The seed decides on the faults, so a run can be repeated, as far as the machine's own timing allows.
"""

import asyncio
import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from benchmarks.installation import console, make_samples, scratch
from benchmarks.report import Result
from kinora.client import ApiError, Client, Json, Unreachable
from kinora.feed import FeedRefused, follow
from kinora.watch import TERMINAL
from schemas.ids import Prefix, new_id
from tests.faults import black_box
from tests.faults.history import Rule, Seen, Violation, check
from tests.faults.observing import observe
from tests.faults.planted import PLANTED, Search, search
from tests.service import Service, running_service

NEEDED = 12
"""Known faults."""
UNFINISHED = 3
"""Jobs that wait or run at any time."""
BETWEEN_FAULTS = (5.0, 10.0)
FROZEN = (0.5, 4.0)
"""Seconds that a frozen process sleeps."""
ENDING_SECONDS = 240.0
ROLES = ("api", "orchestrator", "projections", "auditor", "agent")
SERVERS = ("postgres", "nats-server", "rclone")
VICTIMS = (*ROLES, *SERVERS, "engine")
LOST: tuple[Rule, ...] = ("job_lost", "job_unfinished")
DOUBLED: tuple[Rule, ...] = ("terminal_twice", "event_after_end")


@dataclass
class Run:
    """What happened."""

    submitted: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    seen: list[int] = field(default_factory=list)


def measure(minutes: float, seed: int | None, mutations: bool = False) -> list[Result]:
    """Run for so long, and then until every job is over."""
    chosen = random.SystemRandom().randrange(2**32) if seed is None else seed
    if mutations:
        console.print(f"soak: {len(PLANTED)} known faults with seed {chosen}")
        return _mutations(chosen)
    console.print(f"soak: {minutes:g} minutes with seed {chosen}")
    return [*_jobs(minutes / 2, chosen), *_black_box(minutes / 2, chosen)]


def _mutations(seed: int) -> list[Result]:
    """Real processes with a known fault each: is every one found, and nothing in the right code?"""
    began, searches = time.monotonic(), []
    for planted in PLANTED:
        with scratch() as folder:
            done = asyncio.run(search(planted, folder / "data", seed))
        searches.append(done)
        console.print(
            f"{time.monotonic() - began:5.0f} s  {_told(done)}", highlight=False, markup=False, soft_wrap=True
        )
    return mutation_results(searches)


def mutation_results(searches: Sequence[Search]) -> list[Result]:
    """Missed unless each fault was found, there are enough, and the right code met the same unharmed."""
    found = [done for done in searches if done.found is not None]
    return [
        Result("known faults found", len(found), "faults", NEEDED, at_least=True),
        Result("known faults not found", len(searches) - len(found), "faults", 0),
        Result("controls that found something", sum(bool(done.false_alarms) for done in searches), "runs", 0),
        Result("controls that met no trouble", sum(bool(done.unmet) for done in searches), "runs", 0),
        *(Result(f"found: {done.planted.name}", round(done.seconds, 1), "s") for done in found),
    ]


def _told(done: Search) -> str:
    """One line."""
    name = done.planted.name
    if done.false_alarms:
        return f"FALSE ALARM  {name}: without the fault, {done.false_alarms[0]}"
    if done.unmet:
        return f"NO CONTROL  {name}: the right code never met {', '.join(sorted(done.unmet))}"
    if done.found is None:
        return f"NOT FOUND  {name} in {done.seconds:.0f} s; broken was {done.other or 'nothing'}"
    detail = " ".join(done.found.detail.split())[:120]
    return f"found  {name} by {done.found.rule} in {done.seconds:.0f} s: {detail}"


def _black_box(minutes: float, seed: int) -> list[Result]:
    with scratch() as folder:
        run = asyncio.run(black_box.run(folder / "data", minutes * 60, seed))
    for breach in run.broken:
        console.print(f"black box: {breach}", style="red", highlight=False)
    return [
        Result("black box: promises broken", len(run.broken), "times", 0),
        Result("black box: commands carried out", len(run.calls), "commands"),
        Result("black box: requests sent for them", run.tries, "requests"),
        Result("black box: faults", sum(run.faults.values()), "faults"),
        Result("black box: epochs of the stream", run.epochs, "epochs"),
    ]


def _jobs(minutes: float, seed: int) -> list[Result]:
    with scratch() as folder:
        clips, model = make_samples(folder)
        with running_service(folder) as service:
            dataset_id = service.cli("datasets", "add", str(clips), "--name", "shapes").stdout.strip()
            model_id = service.cli("models", "add", str(model), "--name", "tiny").stdout.strip()
            body: Json = {
                "name": "soak",
                "dataset_id": dataset_id,
                "model_id": model_id,
                "hyperparameters": {
                    "max_steps": 30,
                    "frames": 2,
                    "batch_size": 4,
                    "checkpoint_every_steps": 10,
                },
            }
            run = Run()
            over = threading.Event()
            follower = threading.Thread(target=_follow, args=(service, run, over), daemon=True)
            follower.start()
            _torment(service, body, run, random.Random(seed), minutes * 60)
            over.set()
            statuses = _wait_for_the_end(service, run)
            with service.client() as client:
                head = client.get("/health")["position"]
                _until(lambda: bool(run.seen) and run.seen[-1] >= head, 60)
                seen = Seen("soak", tuple(run.seen), until=head)
                bucket = service.home / "s3" / "kinora"
                broken = check(observe(client, bucket, run.submitted, seen=[seen], all_ended=True))
    return _results(run, statuses, broken)


def _torment(service: Service, body: Json, run: Run, chance: random.Random, seconds: float) -> None:
    ends = time.monotonic() + seconds
    next_fault = time.monotonic() + chance.uniform(*BETWEEN_FAULTS)
    with service.client() as client:
        while time.monotonic() < ends:
            _top_up(client, body, run)
            if time.monotonic() >= next_fault:
                _fault(service, run, chance)
                next_fault = time.monotonic() + chance.uniform(*BETWEEN_FAULTS)
            time.sleep(0.2)


def _top_up(client: Client, body: Json, run: Run) -> None:
    """Submit until enough jobs are unfinished; a request whose answer was lost is the same one again."""
    with contextlib.suppress(Unreachable):
        unfinished = [job for job in client.pages("/jobs") if job["status"] not in TERMINAL]
        for _ in range(UNFINISHED - len(unfinished)):
            key = new_id(Prefix.COMMAND)
            while True:
                try:
                    run.submitted.append(client.post("/jobs", body, key=key)["id"])
                    break
                except Unreachable:
                    continue
                except ApiError as error:
                    if not error.retryable:
                        raise


def _fault(service: Service, run: Run, chance: random.Random) -> None:
    victim, frozen = chance.choice(VICTIMS), chance.random() < 0.3
    try:
        process = _process(service, victim, chance)
        if process is None:
            return
        if frozen:
            process.suspend()
            time.sleep(chance.uniform(*FROZEN))
            process.resume()
        else:
            process.send_signal(signal.SIGKILL)
    except (LookupError, psutil.Error):
        return  # it is dead already
    run.faults[f"{victim} {'frozen' if frozen else 'killed'}"] += 1


def _process(service: Service, victim: str, chance: random.Random) -> psutil.Process | None:
    if victim == "engine":
        engines = service.engines()
        return chance.choice(engines) if engines else None
    return service.role(victim) if victim in ROLES else service.server(victim)


def _follow(service: Service, run: Run, over: threading.Event) -> None:
    """One client of the feed that reconnects for as long as the run goes on and a while longer."""
    after = 0
    while True:
        try:
            with service.client() as client:
                for frame in follow(client, start=after, patience_seconds=300):
                    if frame["type"] == "event":
                        after = frame["position"]
                        run.seen.append(after)
        except (Unreachable, FeedRefused, ApiError):
            if over.is_set():
                return


def _wait_for_the_end(service: Service, run: Run) -> Counter[str]:
    """How the jobs ended, once all of them have."""
    statuses: Counter[str] = Counter()
    with service.client() as client:

        def ended() -> bool:
            nonlocal statuses
            statuses = Counter(client.get(f"/jobs/{job_id}")["status"] for job_id in run.submitted)
            return all(status in TERMINAL for status in statuses)

        _until(ended, ENDING_SECONDS)
    return statuses


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.5)


def _results(run: Run, statuses: Counter[str], broken: Sequence[Violation]) -> list[Result]:
    for violation in broken:
        console.print(f"soak: {violation}", style="red", highlight=False)
    rules = Counter(violation.rule for violation in broken)
    lost, doubled = (sum(rules[rule] for rule in group) for group in (LOST, DOUBLED))
    return [
        Result("jobs lost", lost, "jobs", 0),
        Result("terminal events doubled", doubled, "events", 0),
        Result("other rules broken", rules.total() - lost - doubled, "times", 0),
        Result("jobs submitted", len(run.submitted), "jobs"),
        Result("jobs succeeded", statuses["succeeded"], "jobs"),
        Result("processes killed", sum(n for what, n in run.faults.items() if "killed" in what), "kills"),
        Result("processes frozen", sum(n for what, n in run.faults.items() if "frozen" in what), "times"),
        Result("events seen by a client of the feed", len(run.seen), "events"),
    ]
