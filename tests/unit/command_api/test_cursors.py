"""Cursors can be neither made up nor carried to another list."""

import pytest

from command_api.cursors import BadCursor, Cursors

KEY = bytes(32)


def test_a_cursor_names_its_place() -> None:
    cursors = Cursors(KEY)
    place = ["2030-01-01T00:00:00+00:00", "job_1"]
    assert cursors.read("jobs", cursors.sign("jobs", place)) == place


@pytest.mark.parametrize(
    "change", [lambda c: c[:-2], lambda c: "A" + c[1:], lambda c: "", lambda c: "é", lambda c: "====="]
)
def test_a_changed_cursor_is_refused(change: object) -> None:
    cursors = Cursors(KEY)
    with pytest.raises(BadCursor):
        cursors.read("jobs", change(cursors.sign("jobs", [1])))  # type: ignore[operator]


def test_a_cursor_of_another_list_or_key_is_refused() -> None:
    cursor = Cursors(KEY).sign("jobs", [1])
    with pytest.raises(BadCursor):
        Cursors(KEY).read("models", cursor)
    with pytest.raises(BadCursor):
        Cursors(b"\x01" * 32).read("jobs", cursor)
