"""Each fault names the given value and what is possible, and never a secret."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from command_api.feed.connection import first_fault
from command_api.feed.frames import CLIENT_FRAME
from command_api.wrong_fields import MOST, malformed_id, wrong_fields
from schemas.api import (
    CreateJobBody,
    EnrollAgentBody,
    LoginBody,
    RefreshBody,
    RegisterBody,
    SignupBody,
    StopJobBody,
)
from schemas.ids import Prefix, new_id
from schemas.subscriptions import CreateSubscriptionBody

IDS = {"dataset_id": new_id(Prefix.DATASET), "model_id": new_id(Prefix.MODEL)}


def faults(model: type[BaseModel], text: str) -> dict[str, str]:
    """What is wrong with a body, by pointer, found as the routes find it."""
    with pytest.raises(ValidationError) as refused:
        model.model_validate(json.loads(text))
    found = [{**fault, "loc": ("body", *fault["loc"])} for fault in refused.value.errors()]
    return {each.pointer: each.message for each in wrong_fields(found, model | None, json.loads(text))}


def job(**fields: Any) -> str:
    return json.dumps({**IDS, **fields})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"rank": 513}, "rank is 513; it must be at most 512"),
        ({"rank": "eight"}, 'rank is "eight"; it must be a whole number'),
        ({"rank": 1.5}, "rank is 1.5; it must be a whole number"),
        ({"alpha": 0}, "alpha is 0; it must be greater than 0.0"),
        ({"dropout": 1}, "dropout is 1; it must be less than 1.0"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm is Infinity; it must be a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate is NaN; it must be a finite number"),
        ({"schedule": "cubic"}, "schedule is \"cubic\"; it must be 'cosine', 'linear' or 'constant'"),
        ({"gradient_checkpointing": 3}, "gradient_checkpointing is 3; it must be true or false"),
        ({"target_modalities": []}, "target_modalities has 0 items; it must have at least 1 of them"),
        ({"seed": None}, "seed is null; it must be a whole number"),
        ({"epochs": [1]}, "epochs is a JSON array; it must be a number"),
    ],
)
def test_the_value_and_the_remedy_are_named(given: dict[str, Any], message: str) -> None:
    (name,) = given
    found = faults(CreateJobBody, job(hyperparameters=given))
    assert found == {f"/hyperparameters/{name}": message}


def test_a_rule_over_several_fields_speaks_for_itself() -> None:
    found = faults(CreateJobBody, job(hyperparameters={"micro_batch_size": 16}))
    assert found["/hyperparameters"].startswith("micro_batch_size 16 is larger than batch_size 8")


def test_an_unknown_field_is_named_with_the_known_ones() -> None:
    assert faults(StopJobBody, '{"colour": "red"}') == {
        "/colour": 'there is no field "colour"; there are mode, reason'
    }
    found = faults(CreateJobBody, job(hyperparameters={"lr": 1}))["/hyperparameters/lr"]
    assert found.startswith('there is no field "lr"; there are rank, alpha, dropout')
    file = {"path": "a", "size_bytes": 1, "sha256": "ab" * 32, "mode": 1}
    found = faults(RegisterBody, json.dumps({"name": "x", "files": [file]}))["/files/0/mode"]
    assert found == 'there is no field "mode"; there are path, size_bytes, sha256'


def test_a_wrong_item_is_the_only_fault() -> None:
    file = {"path": "a", "size_bytes": -1, "sha256": "ab" * 32}
    assert faults(RegisterBody, json.dumps({"name": "x", "files": [file]})) == {
        "/files/0/size_bytes": "size_bytes is -1; it must be at least 0"
    }
    assert faults(CreateJobBody, job(hyperparameters={"target_modalities": ["text", "audio"]})) == {
        "/hyperparameters/target_modalities/1": 'target_modalities[1] is "audio";'
        " it must be 'vision', 'connector' or 'text'"
    }
    assert faults(RegisterBody, '{"name": "x", "files": []}') == {
        "/files": "files has 0 items; it must have at least 1 of them"
    }


def test_names_and_labels() -> None:
    assert faults(EnrollAgentBody, '{"name": "  "}') == {
        "/name": 'name is "  "; it must have at least 1 character beside space'
    }
    (message,) = faults(EnrollAgentBody, json.dumps({"name": "n" * 5000})).values()
    assert message == f'name is "{"n" * 60}"… (5000 characters); it must have at most 100 characters'
    assert faults(CreateJobBody, job(labels={"a/b": 3}))["/labels/a~1b"] == "a/b is 3; it must be a text"
    assert list(faults(CreateJobBody, job(labels={"k" * 101: "x"}))) == ["/labels/" + "k" * 101]
    assert faults(EnrollAgentBody, "{}") == {"/name": "name is missing; it is required"}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (SignupBody, {"username": "ada", "email": "a@b", "password": "swordfish"}),
        (SignupBody, {"username": "swordfish1234", "email": "a@b", "password": "Swordfish1234"}),
        (SignupBody, {"username": "ada", "email": "a@b", "password": ["swordfish"]}),
        (LoginBody, {"username": "ada", "password": "swordfish" * 200}),
        (LoginBody, {"username": "ada", "passwort": "swordfish"}),
        (LoginBody, {"password": "swordfish"}),
        (LoginBody, "swordfish"),
        (RefreshBody, {"refresh_token": {"token": "swordfish"}}),
        (RefreshBody, ["swordfish"]),
    ],
)
def test_no_secret_is_repeated(model: type[BaseModel], body: Any) -> None:
    found = faults(model, json.dumps(body))
    assert found
    assert "swordfish" not in str(found).casefold()


def test_a_body_that_is_no_object() -> None:
    assert faults(StopJobBody, "[]") == {"": "the body is a JSON array; it must be a JSON object"}


def test_half_a_surrogate_pair_can_be_answered() -> None:
    for text in ('{"name": "\\ud800"}', '{"name": "x", "\\ud800": 1}'):
        assert str(faults(EnrollAgentBody, text)).encode()


def test_an_endless_list_of_faults_is_cut() -> None:
    files = [{"path": "a", "size_bytes": -1, "sha256": "ab" * 32}] * (MOST + 50)
    assert len(faults(RegisterBody, json.dumps({"name": "x", "files": files}))) == MOST


def test_a_malformed_id_is_named_with_its_shape() -> None:
    fault = {"loc": ("path", "job_id"), "input": "nope", "ctx": {"pattern": "^job_[0-9a-f]{32}$"}}
    assert malformed_id(fault) == '"nope" is not the id of any job: it is job_ and 32 hexadecimal digits'


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (EnrollAgentBody, {"name": "n", "pool": "A b"}, 'pool is "A b"; it must be 1 to 63 small letters'),
        (
            CreateJobBody,
            IDS | {"dataset_id": "mine"},
            'dataset_id is "mine"; it must be ds_ and 32 hex',
        ),
        (
            RegisterBody,
            {"name": "n", "files": [{"path": "a", "size_bytes": 1, "sha256": "AB"}]},
            'sha256 is "AB"; it must be 64 hexadecimal digits',
        ),
        (
            SignupBody,
            {"username": "a b c", "email": "a@b.org", "password": "correct horse battery"},
            'username is "a b c"; it must be of the letters a to z',
        ),
        (
            SignupBody,
            {"username": "abc", "email": "abc", "password": "correct horse battery"},
            'email is "abc"; it must be an address such as name@example.org',
        ),
    ],
)
def test_a_shape_is_described_in_words(model: type[BaseModel], body: dict[str, Any], message: str) -> None:
    (said,) = faults(model, json.dumps(body)).values()
    assert message in said
    assert "^" not in said


def test_a_misspelled_field_is_guessed() -> None:
    assert faults(CreateJobBody, job(hyperparameters={"learningRate": 1}))[
        "/hyperparameters/learningRate"
    ].startswith('there is no field "learningRate"; did you mean learning_rate? There are rank, alpha')
    assert faults(StopJobBody, '{"xyz": 1}') == {"/xyz": 'there is no field "xyz"; there are mode, reason'}


@pytest.mark.parametrize(
    ("start", "pointer", "message"),
    [
        (-1, "/start", "start is -1; it must be 'earliest' or 'latest', or be at least 0"),
        ("soon", "/start", "start is \"soon\"; it must be 'earliest' or 'latest', or be a whole number"),
    ],
)
def test_a_field_that_may_be_several_things_has_one_place(start: object, pointer: str, message: str) -> None:
    body = {"name": "n", "kind": "nats", "start": start}
    assert faults(CreateSubscriptionBody, json.dumps(body)) == {pointer: message}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"from": {"position": -1}}, "/from/position: position is -1; it must be at least 0"),
        ({"from": "soon"}, "/from: from is \"soon\"; it must be a JSON object, or be 'earliest' or 'latest'"),
        ({"from": {"time": "soon"}}, '/from/time: time is "soon"; it must be a time with its zone, such as'),
        ({"filter": {"colour": 1}}, '/filter/colour: there is no field "colour"'),
        (
            {"type": "dance"},
            "the frame: the body is a JSON object; it must have as 'type' one of ",
        ),
    ],
)
def test_a_frame_is_pointed_into(frame: dict[str, Any], message: str) -> None:
    text = json.dumps({"type": "subscribe", "sub": "a", **frame})
    with pytest.raises(ValidationError) as refused:
        CLIENT_FRAME.validate_json(text)
    field, says = first_fault(refused.value, text)
    assert f"{field or 'the frame'}: {says}".startswith(message)
