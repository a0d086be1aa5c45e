"""Somebody who was forgotten: no file of the installation names them, and the log still proves itself."""

import json
import os
import subprocess
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest

from command_api.settings import ApiSettings
from kinora.client import Client, Json
from kinora.verification.verify import Evidence, verify
from tests.service import KINORA, Service, wait_until

pytestmark = pytest.mark.timeout(180)


def files_with(folder: Path, text: bytes) -> set[str]:
    """Files below a folder whose bytes hold the text; those that vanish meanwhile do not count."""
    found = set()
    for path in folder.rglob("*"):
        try:
            if path.is_file() and text in path.read_bytes():
                found.add(str(path.relative_to(folder)))
        except FileNotFoundError:
            continue
    return found


def wrapped_key(service: Service, user_id: str) -> bytes | None:
    settings = ApiSettings.model_validate_json((service.home / "run" / "api.settings.json").read_text())
    with psycopg.connect(settings.postgres.conninfo()) as connection:
        query = "SELECT wrapped_key FROM kinora_person_keys WHERE user_id = %s"
        row = connection.execute(query, [user_id]).fetchone()
        return None if row is None else bytes(row[0])


class Person:
    """Somebody at their own machine, whose every name holds the canary."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.canary = f"canary-{uuid4().hex[:16]}"
        self.password = uuid4().hex
        self.url = str(json.loads((service.home / "credentials.json").read_text())["url"])
        self.folder = folder
        self.http = httpx.Client(
            base_url=f"{self.url}/api/v1", headers={"User-Agent": self.canary}, trust_env=False, timeout=30
        )
        self.user_id = ""

    def post(self, path: str, body: Json, status: int) -> Json:
        key = {"Idempotency-Key": f"{self.canary}-{uuid4().hex}"}
        for _ in range(2):  # a repeat is found by its key
            answer = self.http.post(path, json=body, headers=key)
            assert answer.status_code in (status, 409), answer.text
        found: Json = answer.json()
        return found

    def sign_up(self) -> None:
        names = {"username": self.canary, "email": f"{self.canary}@example.org", "password": self.password}
        answer = self.http.post("/auth/signup", json=names, headers={"Idempotency-Key": self.canary})
        assert answer.status_code == 201, answer.text
        self.user_id = answer.json()["user_id"]
        self.http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        self.http.post("/auth/signup", json=names, headers={"Idempotency-Key": f"{self.canary}-again"})
        self.http.post("/auth/signup", json=names | {"email": f"{self.canary} is no address"})

    def fumble(self) -> None:
        """Wrong passwords, and one's own name in the place of a password."""
        for name, word in ((self.canary, "wrong-password"), (f"{self.canary}-x", self.canary)):
            answer = self.http.post("/auth/login", json={"username": name, "password": word})
            assert answer.status_code == 401, answer.text

    def signed_events(self) -> int:
        answer = self.http.get("/audit/heads/latest")
        tree = answer.json()["tree"] if answer.status_code == 200 else None
        return 0 if tree is None else int(tree["size"])

    def cli(self, *arguments: str) -> str:
        environment = os.environ | {
            "KINORA_HOME": str(self.folder),
            "KINORA_URL": self.url,
            "KINORA_USERNAME": self.canary,
            "KINORA_PASSWORD": self.password,
        }
        done = subprocess.run(
            [KINORA, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_no_file_names_who_was_forgotten(service: Service, tmp_path: Path) -> None:
    control = f"control-{uuid4().hex}"
    person = Person(service, tmp_path / "theirs")
    with person.http:
        person.sign_up()
        person.fumble()
        person.post("/datasets", {"name": control, "files": []}, 422)
        person.post("/agents/enroll", {"name": control}, 201)
        assert person.canary in person.http.get("/users/me").text
        with person.http.stream("GET", "/events/stream", params={"after": 0}) as stream:
            assert stream.status_code == 200
        wait_until(lambda: person.signed_events() >= 3, seconds=30, what="a head over their events")
        person.cli("audit", "fetch", str(tmp_path / "before"))
        key = wrapped_key(service, person.user_id)
        assert key is not None

        person.cli("users", "erase", "me", "--yes")
        assert person.http.get("/users/me").status_code == 401
        person.fumble()

    assert wrapped_key(service, person.user_id) is None
    with service.client() as client:  # something later, so that the erasure is below the next head
        client.post("/agents/enroll", {"name": control})
        wait_until(lambda: is_signed(client), seconds=30, what="a head over the erasure")
    service.cli("audit", "fetch", str(tmp_path / "after"))
    assert files_with(service.home, control.encode()), "the search finds what is there"
    for word in (person.canary, person.password):
        assert files_with(service.home, word.encode()) == set()
        assert word not in service.log.read_text()
    assert not {
        name for name in files_with(service.home, key) if not name.startswith("postgres/data/pg_wal/")
    }
    for folder in ("before", "after"):
        verdict = verify(Evidence.folder(tmp_path / folder), lambda _what, _done, _total: None)
        assert verdict.verified, verdict
        assert verdict.events >= 3


def is_signed(client: Client) -> bool:
    newest = max(event["position"] for event in client.pages("/events"))
    return bool(client.get("/audit/heads/latest")["head"]["position"] >= newest)
