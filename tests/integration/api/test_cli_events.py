"""`kinora events`: an export goes on where it broke off, and events are shown with what they follow from."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from kinora.client import ApiError, Client, Credentials
from kinora.event_export import Exported, NotAnExport, begun, export
from tests.integration.api.running import PASSWORD, Person, Visit
from tests.integration.api.stories import register


@pytest.fixture
async def eve(visit: Visit) -> Person:
    person = await visit.sign_up("eve")
    for number in range(4):
        await register(person, "datasets", {f"{number}": b"a"}, f"set {number}")
    return person


@pytest.fixture
def client(visit: Visit, eve: Person) -> Iterator[Client]:
    credentials = Credentials(url=visit.service.url, username=eve.username, password=SecretStr(PASSWORD))
    with Client(credentials) as client:
        yield client


async def exported(
    client: Client, file: Path, after: int | None = None, until: int | None = None
) -> Exported:
    def run() -> Exported:
        return export(client, file, after=after, until=until, report=lambda *_: None, patience_seconds=0.0)

    return await asyncio.to_thread(run)


async def test_an_export_goes_on_wherever_it_broke_off(client: Client, eve: Person, tmp_path: Path) -> None:
    whole = tmp_path / "whole.ndjson"
    done = await exported(client, whole)
    events = (await eve.get("/events", params={"limit": 200})).json()["data"]
    assert [json.loads(line) for line in whole.read_bytes().splitlines()] == events
    assert (done.first, done.last, done.lines) == (
        events[0]["position"],
        events[-1]["position"],
        len(events),
    )
    content = whole.read_bytes()
    second_line = content.index(b"\n") + 1
    for cut in (0, 1, 5, second_line - 1, second_line, second_line + 7, len(content) - 1, len(content)):
        part = tmp_path / f"{cut}.ndjson"
        part.write_bytes(content[:cut])
        await exported(client, part)
        assert part.read_bytes() == content, cut
    item = await register(eve, "datasets", {"later": b"a"})
    more = await exported(client, whole)
    assert (more.lines, more.last, more.first) == (1, item["last_position"], done.first)
    assert begun(whole).last == item["last_position"]


async def test_an_export_of_a_part(client: Client, eve: Person, tmp_path: Path) -> None:
    positions = [each["position"] for each in (await eve.get("/events")).json()["data"]]
    file = tmp_path / "part.ndjson"
    done = await exported(client, file, after=positions[0], until=positions[2])
    assert (done.first, done.last, done.lines) == (positions[1], positions[2], 2)
    with pytest.raises(NotAnExport, match="beyond"):
        await exported(client, file, until=positions[1])
    with pytest.raises(NotAnExport, match="begins at"):
        await exported(client, file, after=positions[1])


async def test_no_other_file_is_touched(client: Client, tmp_path: Path) -> None:
    for content in (b"my diary", b"my diary\n", b'{"position": 1}\n', b"\x00" * 2**21):
        file = tmp_path / "diary"
        file.write_bytes(content)
        with pytest.raises(NotAnExport):
            await exported(client, file)
        assert file.read_bytes() == content


async def test_a_file_of_another_log_is_not_gone_on_with(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "old.ndjson"
    content = b'{"position":1,"source":"urn:kinora:log_old","id":"evt_1"}\n'
    file.write_bytes(content)
    with pytest.raises(ApiError) as refused:
        await exported(client, file)
    assert refused.value.code == "log_changed"
    assert file.read_bytes() == content


async def test_events_by_command(visit: Visit, eve: Person, tmp_path: Path) -> None:
    event = (await eve.get("/events", params={"limit": 200})).json()["data"][-1]
    file = tmp_path / "events.ndjson"
    environment = os.environ | {
        "KINORA_HOME": str(tmp_path),
        "KINORA_URL": visit.service.url,
        "KINORA_USERNAME": eve.username,
        "KINORA_PASSWORD": PASSWORD,
    }

    async def run(*arguments: str) -> str:
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kinora", "events", *arguments), env=environment, stdout=PIPE, stderr=PIPE
        )
        printed, said = await command.communicate()
        assert command.returncode == 0, said
        return printed.decode()

    effects, exported_ = await asyncio.gather(run("effects", event["id"]), run("export", str(file), "--json"))
    assert event["subject"] in effects
    told = json.loads(exported_)
    assert told["last_position"] == event["position"]
    assert told["lines_added"] == len(file.read_bytes().splitlines())
