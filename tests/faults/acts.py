"""What fault tests do to a running service, and what they wait for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from kinora.client import Client, Json
from kinora.feed import follow
from schemas.errors import KinoraError
from tests.faults.history import Seen
from tests.service import Service, job_events, types, wait_until
from tests.system_fixtures import Registered

ENDED = {"succeeded", "failed", "cancelled"}


def submit(client: Client, registered: Registered, *, steps: int = 60) -> str:
    body = {
        "dataset_id": registered.dataset_id,
        "model_id": registered.model_id,
        "hyperparameters": {
            "max_steps": steps,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "checkpoint_every_steps": 10,
            "held_out_fraction": 0.2,
            "max_new_tokens": 8,
        },
    }
    return str(client.post("/jobs", body)["id"])


def until_step(client: Client, job_id: str, step: int, *, attempt: int = 1) -> Json:
    def reached() -> Json | None:
        job = client.get(f"/jobs/{job_id}")
        assert job["status"] != "failed", job["error"]
        there = job["step"] >= step and job["attempt"] >= attempt and job["status"] == "running"
        return job if there or job["status"] in ENDED else None

    return wait_until(reached, seconds=120, what=f"step {step} of attempt {attempt}")


def until_checkpoint(client: Client, job_id: str) -> None:
    wait_until(
        lambda: "checkpoint_saved" in types(job_events(client, job_id)),
        seconds=120,
        what="a stored checkpoint",
    )


def until_finished(client: Client, job_id: str) -> Json:
    wait_until(
        lambda: client.get(f"/jobs/{job_id}")["status"] in ENDED, seconds=180, what=f"the end of {job_id}"
    )
    return client.get(f"/jobs/{job_id}")


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP for `process` and its children, but not for an agent's engine; SIGCONT in the end."""
    with suppress(psutil.NoSuchProcess):
        family = [process, *(each for each in process.children(recursive=True) if not is_engine(each))]
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.suspend()
    try:
        yield
    finally:
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.resume()


def engines_of(agent: psutil.Process) -> list[psutil.Process]:
    return [each for each in agent.children(recursive=True) if is_engine(each)]


def is_engine(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.cmdline()[1:3] == ["-m", "qlora_engine"]
    return False


class Watcher:
    """A client of the feed that drops its connection every few events and resumes by position."""

    def __init__(self, service: Service, after: int, *, every: int = 15) -> None:
        self._service = service
        self._after = after
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.positions: list[int] = []

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def until(self, position: int) -> Seen:
        """What it has seen, once it has seen `position`."""
        wait_until(
            lambda: max(self.positions, default=0) >= position, seconds=60, what=f"the feed's {position}"
        )
        return Seen("feed", tuple(self.positions), after=self._after, until=position)

    def _watch(self) -> None:
        with self._service.client() as client:  # one log-in: there is a quota of them
            while not self._stop.is_set():
                with suppress(KinoraError):
                    self._connect(client)

    def _connect(self, client: Client) -> None:
        start = max(self.positions, default=self._after)
        frames = follow(client, start=start, quiet=True)
        seen = 0
        for frame in frames:
            if frame["type"] == "event":
                self.positions.append(int(frame["position"]))
                seen += 1
            if self._stop.is_set() or seen == self._every:
                break
        frames.close()  # type: ignore[attr-defined]
