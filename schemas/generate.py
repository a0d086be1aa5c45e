"""Writes the JSON Schema of every event: ``python -m schemas.generate``.

One file per type and version in `schemas/events/json/`. A published file never changes; a new version of an
event adds a file beside the old one. ``--check`` writes nothing and fails when a file is not up to date.
"""

import json
import sys
from pathlib import Path
from typing import Any

from schemas.envelope import Envelope
from schemas.events import REGISTRY, Event

FOLDER = Path(__file__).parent / "events" / "json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ENVELOPE_FILE = "envelope.json"


def event_file(event: type[Event]) -> str:
    """The name of an event's schema file."""
    return f"{event.TYPE}.v{event.VERSION}.json"


def schema_files() -> dict[str, str]:
    """Every schema of today's code by file name."""
    files = {ENVELOPE_FILE: _text({"$id": ENVELOPE_FILE} | Envelope.model_json_schema(mode="serialization"))}
    for event in REGISTRY.types:
        name = event_file(event)
        # As stored, so that a field with a default is one that consumers can rely on.
        files[name] = _text({"$id": name} | event.model_json_schema(mode="serialization"))
    return files


def out_of_date(folder: Path = FOLDER) -> list[str]:
    """Files that are missing or differ from the code."""
    return [
        name
        for name, text in schema_files().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def write(folder: Path = FOLDER) -> list[str]:
    """Write what is missing or differs; files of older versions stay. Returns the names written."""
    folder.mkdir(parents=True, exist_ok=True)
    files, names = schema_files(), out_of_date(folder)
    for name in names:
        (folder / name).write_text(files[name], encoding="utf-8")
    return names


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        stale = out_of_date()
        if stale:
            sys.stderr.write(f"out of date: {', '.join(stale)}; run python -m schemas.generate\n")
        return 1 if stale else 0
    names = write()
    sys.stdout.write(f"{len(names)} of {len(schema_files())} schema files written to {FOLDER}\n")
    return 0


def _open(schema: Any) -> Any:
    """Our own code refuses unknown fields; readers have to ignore them, because a version may gain some."""
    match schema:
        case dict():
            return {
                key: _open(each)
                for key, each in schema.items()
                if (key, each) != ("additionalProperties", False)
            }
        case list():
            return [_open(each) for each in schema]
        case _:
            return schema


def _text(schema: dict[str, Any]) -> str:
    return (
        json.dumps({"$schema": DIALECT} | _open(schema), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
