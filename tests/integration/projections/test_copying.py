"""Rows brought in by binary COPY are as text would have brought them; what does not fit is refused."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from projections.copying import copy_rows
from projections.view import Row, Table

TABLE = Table(
    name="things",
    stream="name",
    columns=(
        "name text NOT NULL",
        "small integer CHECK (small <> 7)",
        "great bigint",
        "measured double precision",
        "document jsonb",
        "at timestamptz",
    ),
    key="name",
)
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
def things(conninfo: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA copied")
        connection.execute("SET search_path = copied")
        connection.execute(TABLE.create)
        yield connection
        connection.execute("DROP SCHEMA copied CASCADE")


def test_rows_arrive_as_they_are(things: psycopg.Connection[Any]) -> None:
    rows: list[Row] = [
        ("a\tb\\c\nd “e” 𝄞", -(2**31), 2**63 - 1, 0.1, Jsonb({"a": ["ä", None]}), AT),
        ("", 2**31 - 1, -(2**63), float("inf"), '{"b": 1.5}', AT.astimezone(timezone(timedelta(hours=5)))),
        ("\\N", None, None, None, None, None),
    ]
    copy_rows(things, "copied", TABLE, rows)
    found = things.execute("SELECT * FROM things ORDER BY ctid").fetchall()
    assert found == [(*rows[0][:4], {"a": ["ä", None]}, AT), (*rows[1][:4], {"b": 1.5}, AT), rows[2]]


@pytest.mark.parametrize(
    ("row", "error", "said"),
    [
        (("a", 2**31, 1, 1.0, None, None), OverflowError, "column small of things cannot hold 2147483648"),
        (("a", -(2**31) - 1, 1, 1.0, None, None), OverflowError, "cannot hold -2147483649"),
        (("a", 1, 2**63, 1.0, None, None), OverflowError, "too big"),
        (("a", 7, 1, 1.0, None, None), psycopg.errors.CheckViolation, "small"),
        (("a\0", 1, 1, 1.0, None, None), psycopg.errors.CharacterNotInRepertoire, "0x00"),
        (("a", 1, 1, 1.0, None, datetime(2026, 1, 1)), TypeError, "offset"),  # noqa: DTZ001
    ],
    ids=["integer", "negative", "bigint", "check", "nul", "no zone"],
)
def test_what_does_not_fit_is_refused(
    things: psycopg.Connection[Any], row: Row, error: type[Exception], said: str
) -> None:
    good = ("b", None, None, None, None, None)
    with pytest.raises(error, match=said):
        copy_rows(things, "copied", TABLE, [good, row])
    assert things.execute("SELECT count(*) FROM things").fetchone() == (0,)
