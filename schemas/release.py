"""Releases event versions: ``python -m schemas.release``.

What is released stands in `schemas/events/released.json`, the structure of each type and version, and from
then on `tests/unit/schemas/test_released.py` refuses every change that would break a reader. Running it again
adds new versions and fields; it writes nothing when something released was broken. A version that no log
outside of this tree can hold may be taken back: delete its line there and its examples in `tests/golden`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.compatibility import Schema, broken, structure
from schemas.generate import FOLDER

RELEASED = FOLDER.parent / "released.json"
ENVELOPE = "envelope"


def released(file: Path = RELEASED) -> dict[str, Schema]:
    """The structure of every released version by name, such as ``kinora.job.requested.v1``."""
    found: dict[str, Schema] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def current(folder: Path = FOLDER) -> dict[str, Schema]:
    """The same of the generated schemas: the contract as it stands in the tree."""
    return {
        file.name.removesuffix(".json"): structure(json.loads(file.read_text(encoding="utf-8")))
        for file in sorted(folder.glob("*.json"))
    }


def breaches(before: dict[str, Schema], after: dict[str, Schema]) -> Iterator[str]:
    """Every promise that is not kept, one sentence each."""
    for name, schema in before.items():
        if name not in after:
            yield f"{name} is gone: keep its schema file; old events have this version for ever"
        else:
            for fault in broken(schema, after[name]):
                yield f"{name}: {fault}; add a version with an upcaster and a downcaster instead"


def main(arguments: list[str]) -> int:
    if arguments:
        sys.stderr.write(f"python -m schemas.release takes no arguments, got {' '.join(arguments)}\n")
        return 2
    before, after = released(), current()
    faults = list(breaches(before, after))
    if faults:
        sys.stderr.write("".join(f"{fault}\n" for fault in faults))
        return 1
    RELEASED.write_text(_lines(after), encoding="utf-8")
    sys.stdout.write(f"{len(after)} versions are released, {len(after) - len(before)} of them new\n")
    return 0


def _lines(schemas: dict[str, Any]) -> str:
    """One line a version, so that a difference shows which one changed."""
    rows = (f"{json.dumps(name)}: {json.dumps(schema, sort_keys=True)}" for name, schema in schemas.items())
    return "{\n" + ",\n".join(rows) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
