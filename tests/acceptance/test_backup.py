"""A running service is backed up, and a new one made of the backup goes on where it was."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_api.backup.folder import BackupFolder
from kinora.client import Client, Json
from schemas.envelope import stored_bytes
from tests.service import Service, job_events, running_service, types, wait_until
from tests.system_fixtures import Registered

pytestmark = pytest.mark.timeout(400)

IDEMPOTENCY_KEY = "from-before-the-backup"


@dataclass(frozen=True)
class Moved:
    """The service that was backed up, the one that was made of it, and what they should agree on."""

    old: Service
    new: Service
    folder: Path
    job: Json
    running: str
    """A job that was in training when the backup was made."""
    adapter: dict[str, str]
    position: int
    log_id: str

    @property
    def target(self) -> Path:
        return self.folder / "backup"

    @property
    def passphrase(self) -> tuple[str, str]:
        return "--passphrase-file", str(self.folder / "passphrase")


def job_body(registered: Registered, max_steps: int, name: str) -> Json:
    return {
        "dataset_id": registered.dataset_id,
        "model_id": registered.model_id,
        "name": name,
        "hyperparameters": {
            "max_steps": max_steps,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 4,
        },
    }


def succeeded(client: Client, job_id: str) -> Json:
    def look() -> Json | None:
        job = client.get(f"/jobs/{job_id}")
        assert job["status"] not in ("failed", "cancelled"), job
        return job if job["status"] == "succeeded" else None

    return wait_until(look, seconds=120, what=f"{job_id} to succeed")


def adapter_of(service: Service, job_id: str, folder: Path) -> dict[str, str]:
    service.cli("jobs", "adapter", job_id, str(folder))
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def moved(
    service: Service, registered: Registered, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Moved]:
    folder = tmp_path_factory.mktemp("moved")
    (folder / "passphrase").write_text("correct horse battery staple\n")
    with service.client() as client:
        first = client.post("/jobs", job_body(registered, 6, "done"), key=IDEMPOTENCY_KEY)
        job = succeeded(client, first["id"])
        running = client.post("/jobs", job_body(registered, 5000, "running"))["id"]
        wait_until(lambda: client.get(f"/jobs/{running}")["step"] > 8, seconds=180, what="some steps")
        service.cli("backup", str(folder / "backup"), "--passphrase-file", str(folder / "passphrase"))
        page = client.get("/events", limit=1)
        client.post(f"/jobs/{running}/stop", {"mode": "immediate"})
    adapter = adapter_of(service, job["id"], folder / "adapter")
    service.cli(
        *("restore", str(folder / "backup"), "--passphrase-file", str(folder / "passphrase")),
        *("--home", str(folder / "home")),
    )
    with running_service(folder) as new:
        yield Moved(service, new, folder, job, running, adapter, page["head"], page["log_id"])


def test_what_was_there_is_there(moved: Moved, registered: Registered) -> None:
    with moved.new.client() as client:
        wait_until(
            lambda: moved.job["id"] in [job["id"] for job in client.pages("/jobs")],
            seconds=30,
            what="the read models to fill",
        )
        job = client.get(f"/jobs/{moved.job['id']}")
        assert client.get(f"/datasets/{registered.dataset_id}")["status"] == "ready"
        assert client.get(f"/models/{registered.model_id}")["status"] == "ready"

    assert job == moved.job
    assert adapter_of(moved.new, job["id"], moved.folder / "adapter-again") == moved.adapter


def test_the_history_is_the_same(moved: Moved) -> None:
    with moved.old.client() as old, moved.new.client() as new:
        before, after = job_events(old, moved.job["id"]), job_events(new, moved.job["id"])

    assert [event | {"source": ""} for event in after] == [event | {"source": ""} for event in before]
    assert {event["source"] for event in after}.isdisjoint({event["source"] for event in before})


def test_an_old_idempotency_key_still_gives_the_first_answer(moved: Moved, registered: Registered) -> None:
    with moved.new.client() as client:
        again = client.post("/jobs", job_body(registered, 6, "done"), key=IDEMPOTENCY_KEY)

    assert again["id"] == moved.job["id"]


def test_followers_of_the_old_log_start_over(moved: Moved) -> None:
    tail = moved.new.cli(
        *("events", "tail", "--after", str(moved.position), "--log-id", moved.log_id),
        *("--until-head", "--ndjson"),
    )
    assert "log_restored" in tail.stderr
    assert json.loads(tail.stdout.splitlines()[0])["position"] < moved.position


def test_the_job_that_was_running_goes_on_as_another_attempt(moved: Moved) -> None:
    with moved.new.client() as client:
        wait_until(
            lambda: (
                client.get(f"/jobs/{moved.running}")["attempt"] >= 2
                and client.get(f"/jobs/{moved.running}")["status"] == "running"
            ),
            seconds=90,
            what="the next attempt",
        )
        story = types(job_events(client, moved.running))
        client.post(f"/jobs/{moved.running}/stop", {"mode": "immediate"})
    assert "lease_expired" in story or "attempt_released" in story


def test_new_jobs_run(moved: Moved, registered: Registered) -> None:
    """On new data, too, and without a clip.

    After the test before, whose job the only agent would train first once its lease has ended.
    """
    folder = moved.folder / "words"
    folder.mkdir()
    rows = [{"prompt": f"What is {n} and {n}?", "response": f"{2 * n}"} for n in range(1, 11)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = moved.new.cli("datasets", "add", str(folder), "--name", "words").stdout.strip()
    with moved.new.client() as client:
        job = client.post("/jobs", job_body(registered, 2, "new") | {"dataset_id": words})
        trained = succeeded(client, job["id"])
        assert client.get(f"/datasets/{words}")["facts"]["clips"] == 0
    assert (trained["training_examples"], trained["held_out_examples"]) == (8, 2)


def test_places_in_use_and_wrong_passphrases_are_refused(moved: Moved) -> None:
    (moved.folder / "wrong").write_text("correct horse battery stable")
    used = moved.old.cli(
        "restore", str(moved.target), "--home", str(moved.old.home), *moved.passphrase, check=False
    )
    assert (used.returncode, "is not empty" in used.stderr) == (2, True), used.stderr
    home = moved.folder / "another"
    wrong = moved.old.cli(
        *("restore", str(moved.target), "--home", str(home)),
        *("--passphrase-file", str(moved.folder / "wrong")),
        check=False,
    )
    assert (wrong.returncode, "backup_keys" in wrong.stderr) == (2, True), wrong.stderr
    assert not home.exists()
    inside = moved.old.cli("backup", str(moved.old.home / "backup"), "--without-keys", check=False)
    assert (inside.returncode, "contain one another" in inside.stderr) == (2, True), inside.stderr


def test_a_stopped_service_is_backed_up_too_and_holds_the_same_bytes(moved: Moved) -> None:
    """Last: it stops the new service."""
    assert moved.new.stop() == 0
    target = moved.folder / "second"
    moved.new.cli("backup", str(target), *moved.passphrase)
    moved.new.cli("backup", "verify", str(target), *moved.passphrase)

    def stored(folder: Path) -> list[tuple[int, bytes]]:
        backup = BackupFolder(folder)
        parts = [folder / part.path for part in backup.manifest().of_kind("events")]
        lines = b"".join(gzip.decompress(part.read_bytes()) for part in parts).splitlines()
        return [(position, state) for position, _, state in map(stored_bytes, lines)]

    before, after = stored(moved.target), stored(target)
    assert before
    assert after[: len(before)] == before
    assert len(after) > len(before)
