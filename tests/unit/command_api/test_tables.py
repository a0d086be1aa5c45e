"""Every table that the control plane makes is known to backups."""

import re
from pathlib import Path

from command_api import tables

SOURCE = Path(tables.__file__).parent
CREATED = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", re.IGNORECASE)


def test_every_table_in_the_source_is_in_the_registry() -> None:
    made = {name for path in SOURCE.rglob("*.py") for name in CREATED.findall(path.read_text())}

    assert made == tables.KEPT | tables.DERIVED


def test_a_set_makes_what_it_names() -> None:
    for each in tables.TABLE_SETS:
        made = {name for statement in each.statements for name in CREATED.findall(statement)}
        assert made == {*each.kept, *each.derived}


def test_no_table_is_kept_and_derived() -> None:
    assert not tables.KEPT & tables.DERIVED
