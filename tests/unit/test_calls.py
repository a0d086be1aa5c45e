"""The checker of promises finds each way of breaking one, and nothing in a history that keeps them."""

from dataclasses import replace

import pytest

from tests.faults.calls import Call, Json, Told, check_calls


def event(position: int, subject: str, cause: str, kind: str = "kinora.dataset.registered.v1") -> Json:
    return {
        "id": f"evt_{position}",
        "position": position,
        "subject": subject,
        "type": kind,
        "causationid": cause,
    }


LOG = [event(1, "ds_1", "cmd_1"), event(3, "ds_2", "cmd_2"), event(4, "ds_3", "cmd_3")]
CALLS = [
    Call("k1", "cmd_1", 0.0, 1.0, [Told("ds_1", 1), Told("ds_1", 1)], read={"id": "ds_1"}),
    Call("k2", "cmd_2", 0.5, 2.0, [Told("ds_2", 3)]),
    Call("k3", "cmd_3", 1.5, 2.5, [Told("ds_3", 4)]),
    Call("k4", "cmd_4", 1.5, refused="conflict"),
    Call("k5"),
]


def test_kept_promises_are_no_breach() -> None:
    assert check_calls(LOG, CALLS) == []


def changed(number: int, **fields: object) -> list[Call]:
    return [replace(call, **fields) if place == number else call for place, call in enumerate(CALLS)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "log", "calls"),
    [
        ("command_lost", LOG[:2], CALLS),
        ("command_lost", LOG, changed(1, told=[Told("ds_2", 4)])),
        ("command_twice", [*LOG, event(5, "ds_1", "cmd_1")], CALLS),
        ("command_twice", [*LOG, {**LOG[0], "position": 9}], CALLS),
        ("answer_differs", LOG, changed(0, told=[Told("ds_1", 1), Told("ds_9", 1)])),
        ("refused_but_stored", [*LOG, event(6, "ds_4", "cmd_4")], CALLS),
        ("order_in_time", [LOG[0], event(3, "ds_3", "cmd_3"), event(4, "ds_2", "cmd_2")], None),
        ("not_read", LOG, changed(0, read={"id": None})),
    ],
)
def test_each_broken_promise_is_found(rule: str, log: list[Json], calls: list[Call] | None) -> None:
    if calls is None:  # the second was answered before the third began, and stands behind it
        calls = changed(1, told=[Told("ds_2", 4)], answered=1.2)
        calls[2] = replace(calls[2], told=[Told("ds_3", 3)])
    assert rule in {breach.rule for breach in check_calls(log, calls)}


def test_concurrent_commands_may_stand_in_any_order() -> None:
    log = [LOG[0], event(3, "ds_3", "cmd_3"), event(4, "ds_2", "cmd_2")]
    calls = changed(1, told=[Told("ds_2", 4)])
    calls[2] = replace(calls[2], told=[Told("ds_3", 3)])
    assert check_calls(log, calls) == []
