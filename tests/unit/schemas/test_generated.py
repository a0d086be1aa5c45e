"""The schema files say what the code says, and what the code writes fits them."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from schemas.events import REGISTRY
from schemas.generate import FOLDER, main, out_of_date, schema_files, write


def test_every_file_is_up_to_date() -> None:
    assert out_of_date() == [], "run python -m schemas.generate"


def test_every_event_has_a_file_and_no_file_is_left_over() -> None:
    names = {file.name for file in FOLDER.glob("*.json")} - {"envelope.json"}
    known = {event.TYPE: event.VERSION for event in REGISTRY.types}
    assert {
        f"{kind}.v{version}.json" for kind, last in known.items() for version in range(1, last + 1)
    } == names


@pytest.mark.parametrize("name", sorted(schema_files()))
def test_every_file_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(json.loads((FOLDER / name).read_text(encoding="utf-8")))


def test_writing_touches_only_what_differs(tmp_path: Path) -> None:
    assert sorted(write(tmp_path)) == sorted(schema_files())
    assert write(tmp_path) == []
    (tmp_path / "envelope.json").write_text("{}")
    (tmp_path / "kinora.job.requested.v0.json").write_text("{}")
    assert out_of_date(tmp_path) == ["envelope.json"]
    assert write(tmp_path) == ["envelope.json"]
    assert (tmp_path / "kinora.job.requested.v0.json").read_text() == "{}"


def test_the_command_can_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert capsys.readouterr().err == ""
