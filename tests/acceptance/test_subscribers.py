"""The subscribers of docs/subscribers, which use nothing of ours, against the real service."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from jsonschema import Draft7Validator

from kinora.client import Json, at
from schemas.api import EnrollAgentBody, SignupBody
from schemas.generate import FOLDER
from tests.service import Service, wait_until

pytestmark = pytest.mark.timeout(240)

SUBSCRIBERS = Path(__file__).parents[2] / "docs" / "subscribers"
EXAMPLES = ("nats_subscriber.py", "nats-subscriber.ts")
WEBSOCKET = "websocket_subscriber.py"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TypeScript example, with the packages that its lockfile names."""
    if shutil.which("npm") is None:
        pytest.skip("there is no Node here to run TypeScript with")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "nats-subscriber.ts"):
        shutil.copy(SUBSCRIBERS / name, folder)
    subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline"],
        cwd=folder,
        check=True,
        timeout=180,
        capture_output=True,
    )
    return folder


@dataclass
class Example:
    """A subscriber and what it prints, over all of its runs."""

    command: list[str]
    output: Path
    process: "subprocess.Popen[bytes] | None" = None

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[bytes]"]:
        with self.output.open("ab") as output:
            process = subprocess.Popen(self.command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def printed(self) -> list[str]:
        return self.output.read_text().splitlines() if self.output.exists() else []


def expected(service: Service, after: int) -> list[str]:
    """What the API tells of the organization's events behind a position."""
    with service.client() as client:
        events = client.pages("/events", after=after)
        return [f"{event['position']} {event['type']} {event['subject']}" for event in events]


def enroll(service: Service, name: str) -> None:
    with service.client() as client:
        client.post("/agents/enroll", EnrollAgentBody(name=name))


def another_organization(service: Service) -> None:
    """Has events that are nobody else's to read."""
    with service.client() as client:
        name = f"stranger-{uuid4().hex[:8]}"
        client.post(
            "/auth/signup",
            SignupBody(username=name, email=f"{name}@example.org", password="correct horse battery"),
            key=name,
        )


def followed(service: Service, example: Example, after: int) -> None:
    def caught_up() -> bool:
        return example.printed() == expected(service, after)

    try:
        wait_until(caught_up, seconds=20, what="the subscriber to have printed every event once")
    except AssertionError:
        assert example.printed() == expected(service, after)
        raise


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_its_organization_s_events_once_over_a_restart(
    service: Service, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    if name.endswith(".ts"):
        tsx = request.getfixturevalue("modules") / "node_modules" / ".bin" / "tsx"
        run = [str(tsx), str(request.getfixturevalue("modules") / name)]
    else:
        run = [sys.executable, str(SUBSCRIBERS / name)]
    added = service.cli(
        "subscriptions", "add", "nats", "warehouse", "--folder", str(tmp_path), "--json", "--from", "latest"
    )
    made: Json = json.loads(added.stdout)
    files = [tmp_path / f"{made['id']}.json", tmp_path / f"{made['id']}.creds"]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    example = Example([*run, *map(str, files), str(tmp_path / "seen.txt")], tmp_path / "printed.txt")
    with example.running():
        enroll(service, "first")
        followed(service, example, made["after"])
    another_organization(service)
    enroll(service, "second")
    with example.running():
        followed(service, example, made["after"])
        assert len(example.printed()) == 4
        with service.client() as client:
            assert client.get(at("event-subscriptions", made["id"]))["reading"]["pending"] == 0
        service.cli("subscriptions", "rm", made["id"])
    assert service.cli("subscriptions", "show", made["id"], check=False).returncode == 4


def test_a_websocket_client_goes_on_behind_the_last_event_it_saw(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        arguments = [client.credentials.url, client.token(), str(tmp_path / "seen.json")]
    run = [sys.executable, str(SUBSCRIBERS / WEBSOCKET), *arguments]
    example = Example(run, tmp_path / "printed.txt")
    with example.running():
        followed(service, example, 0)
    enroll(service, "while it was away")
    another_organization(service)
    with example.running():
        followed(service, example, 0)
        enroll(service, "while it was there")
        followed(service, example, 0)


@pytest.mark.parametrize("name", [*EXAMPLES, WEBSOCKET])
def test_an_example_is_short_and_uses_nothing_of_ours(name: str) -> None:
    text = (SUBSCRIBERS / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(('"""', "//"))]
    assert len(lines) <= 20
    assert not any(ours in text for ours in ("import kinora", "from kinora", "schemas.", "command_api"))


def test_the_asyncapi_document_is_one(service: Service, modules: Path) -> None:
    """Judged by the schema that AsyncAPI itself publishes."""
    schema = json.loads((modules / "node_modules/@asyncapi/specs/schemas/3.0.0.json").read_text())
    with service.client() as client, httpx.Client(trust_env=False) as stranger:
        document = stranger.get(f"{client.credentials.url}/asyncapi.json").json()
        name = next(iter(document["channels"]["stream"]["messages"]))
        published = stranger.get(
            client.credentials.url + document["components"]["messages"][name]["x-schema"]
        )
        assert published.json() == json.loads((FOLDER / f"{name}.json").read_text())
        assert stranger.get(f"{client.credentials.url}/schemas/events/kinora.x.v1.json").status_code == 404
    errors = [
        f"{error.json_path}: {error.message[:200]}" for error in Draft7Validator(schema).iter_errors(document)
    ]
    assert errors == []
