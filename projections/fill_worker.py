"""`python -m projections.fill_worker`: fills slices in a process of its own, so that every core takes part.

Standard input brings one line of `Task` and then a line for every slice; each is answered by a line on
standard output, empty when the slice is done. The end of the input ends the process.
"""

import gc
import json
import sys
from typing import Any
from uuid import UUID

import psycopg
from pydantic import BaseModel

from projections.filling import Target, fill_slice
from projections.listening import CONNECTION_LOST
from projections.registry import view_named
from projections.slices import Slice


class Task(BaseModel):
    """What all slices of a pass have in common."""

    conninfo: str
    fill: int
    until: int
    generations: dict[str, int]
    """By view."""


class Refused(BaseModel):
    """Why a slice was not filled."""

    error: str
    connection_lost: bool


def main() -> None:
    # Rows make no cycles, and there are millions of them: looking for some would cost a third of the time.
    gc.disable()
    task = Task.model_validate_json(sys.stdin.readline())
    # What was imported stays: no need to look at it after every slice.
    gc.freeze()
    targets = [Target(view_named(name), generation) for name, generation in task.generations.items()]
    with psycopg.connect(task.conninfo, autocommit=True) as connection:
        for line in sys.stdin:
            sys.stdout.write(_filled(connection, targets, task, _slice(json.loads(line))) + "\n")
            sys.stdout.flush()
            gc.collect()


def _slice(told: dict[str, Any]) -> Slice:
    return Slice(told["number"], UUID(told["after"]), UUID(told["last"]))


def _filled(connection: psycopg.Connection[Any], targets: list[Target], task: Task, part: Slice) -> str:
    try:
        fill_slice(connection, targets, task.fill, task.until, part)
    except Exception as error:  # noqa: BLE001
        # The door of this process: who asked decides.
        refused = Refused(
            error=f"{type(error).__name__}: {error}", connection_lost=isinstance(error, CONNECTION_LOST)
        )
        return refused.model_dump_json()
    return ""


if __name__ == "__main__":
    main()
