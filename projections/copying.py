"""Rows into a table by COPY in PostgreSQL's binary form: a quarter of the time that text takes, on both ends.

Values are Python's for the columns' types; JSON is a `Jsonb`, or a text that is JSON already.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import JsonbBinaryDumper

from projections.view import Row, Table

_BITS = {psycopg.adapters.types["int2"].oid: 15, psycopg.adapters.types["int4"].oid: 31}


class _Json(JsonbBinaryDumper):
    def dump(self, obj: Any) -> Any:
        # The version of the binary form is in front of the text.
        return b"\x01" + obj.encode() if type(obj) is str else super().dump(obj)


def copy_rows(connection: psycopg.Connection[Any], schema: str, table: Table, rows: Sequence[Row]) -> None:
    """Append rows to a table.

    Raises:
        psycopg.Error: the server refuses a row.
        OverflowError: a number does not fit its column.
        TypeError: a value is not of its column's type, such as a time without a zone.
    """
    if not rows:
        return
    into, columns = sql.Identifier(schema, table.name), sql.SQL(", ").join(map(sql.Identifier, table.names))
    with connection.cursor() as cursor:
        cursor.adapters.register_dumper(dict, _Json)
        cursor.execute(sql.SQL("SELECT {} FROM {} LIMIT 0").format(columns, into))
        types = [column.type_code for column in cursor.description or ()]
        _refuse_wrapped(table, types, rows)
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(into, columns)
        with cursor.copy(statement) as copy:
            copy.set_types(types)
            write = copy.write_row
            for row in rows:
                write(row)


def _refuse_wrapped(table: Table, types: Sequence[int], rows: Sequence[Row]) -> None:
    """Psycopg keeps the lower bits of a number that is too great for its column, and says nothing."""
    for place, kind in enumerate(types):
        if (bits := _BITS.get(kind)) is None:
            continue
        found = set(map(itemgetter(place), rows)) - {None}
        if found and not -(2**bits) <= min(found) <= max(found) < 2**bits:
            greatest = max(found, key=abs)
            raise OverflowError(f"column {table.names[place]} of {table.name} cannot hold {greatest}")
