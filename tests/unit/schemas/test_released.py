"""The gate: what was released stays readable, whatever the tree says today."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from schemas.events import REGISTRY
from schemas.generate import FOLDER
from schemas.release import ENVELOPE, breaches, current, main, released

RELEASED = released()


def test_no_released_version_is_broken() -> None:
    assert list(breaches(RELEASED, current())) == []


def test_every_version_is_released() -> None:
    assert current() == RELEASED, "run python -m schemas.release, and python -m tests.golden.record"


def test_every_version_can_be_cast_to_every_other() -> None:
    for event in REGISTRY.types:
        for version in range(1, event.VERSION):
            assert (event.TYPE, version, version + 1) in REGISTRY.casts
            assert (event.TYPE, version + 1, version) in REGISTRY.casts


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda schemas: schemas.pop("kinora.job.requested.v1"), "kinora.job.requested.v1 is gone"),
        (
            lambda schemas: schemas["kinora.job.failed.v1"]["properties"].pop("code"),
            "kinora.job.failed.v1: code is gone",
        ),
        (
            lambda schemas: schemas[ENVELOPE]["properties"].update(actor={"type": "integer"}),
            "envelope: actor: type was 'string' and is 'integer'",
        ),
    ],
)
def test_a_broken_promise_is_named(change: Any, fault: str) -> None:
    changed = json.loads(json.dumps(RELEASED))
    change(changed)
    (said,) = breaches(RELEASED, changed)
    assert said.startswith(fault)


def test_a_release_writes_nothing_that_breaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "released.json"
    promised = json.loads(json.dumps(RELEASED))
    promised["kinora.job.failed.v1"]["properties"]["gone"] = {"type": "string"}
    kept.write_text(json.dumps(promised))
    monkeypatch.setattr("schemas.release.RELEASED", kept)
    monkeypatch.setattr("schemas.release.released", lambda: json.loads(kept.read_text()))
    assert main([]) == 1
    assert "kinora.job.failed.v1: gone is gone" in capsys.readouterr().err
    assert json.loads(kept.read_text()) == promised
    kept.write_text("{}")
    assert main([]) == 0
    assert json.loads(kept.read_text()) == RELEASED


def test_readers_may_not_trip_over_new_fields() -> None:
    schema = json.loads((FOLDER / "kinora.job.failed.v1.json").read_text())
    failed = {"attempt": 1, "code": "oom", "message": "m", "retryable": False}
    Draft202012Validator(schema).validate(failed | {"of_a_later_release": 1})
