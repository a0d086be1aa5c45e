"""`kinora projections`: list the read models, rebuild one from the log, take parked streams up again."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from kinora.cli.datasets import AsJson
from kinora.cli.output import age, connect, door, print_json, print_table, talk
from kinora.client import Client, Json, at
from schemas.api import ReplayParkedBody

app = typer.Typer(no_args_is_help=True, help="Read models: folds of the log.")


@app.command()
@door
def ls(as_json: AsJson = False) -> None:
    """List the read models: how far behind each is, what it has parked, its rebuild."""
    with connect() as client:
        rows = client.get("/projections")["data"]
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "name": lambda row: row["name"],
            "position": lambda row: str(row["position"]),
            "lag": lambda row: str(row["lag"]),
            "parked": lambda row: str(row["parked"]),
            "rebuild": _rebuilt,
        },
        "No read models yet; is the projections process running?",
    )


@app.command()
@door
def rebuild(
    name: Annotated[str, typer.Argument(metavar="VIEW", help="Its name, as `kinora projections ls` says.")],
    wait: bool = True,
) -> None:
    """Fold a read model anew beside the old one, which serves until the swap."""
    with connect() as client:
        request = client.post(at("projections", name, "rebuild"))
        talk.print(f"rebuild of {name} is {request['status']}")
        if not wait:
            return
        with _bar(f"rebuilding {name}") as progress:
            while request["status"] not in ("done", "failed"):
                time.sleep(0.2)
                rows = {row["name"]: row for row in client.get("/projections")["data"]}
                request = rows[name].get("rebuild") or {"status": "done"}
                progress.update(
                    progress.task_ids[0],
                    completed=request.get("position", 0),
                    total=request.get("target") or None,
                )
    if request["status"] == "failed":
        talk.print(f"rebuild failed: {request.get('error')}", style="red", markup=False)
        raise typer.Exit(1)
    talk.print(f"{name} is rebuilt", style="green")
    for table in (request.get("checked") or {}).get("differing") or ():
        talk.print(f"the former table {table} held something else: it was damaged", style="yellow")


@app.command()
@door
def parked(
    view: Annotated[str | None, typer.Argument(metavar="[VIEW]", help="Only this read model's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the streams that read models leave alone since one of their events could not be folded."""
    with connect() as client:
        rows = list(client.pages("/projections/parked", view=view))
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "view": lambda row: row["view"],
            "stream": lambda row: row["stream_id"],
            "position": lambda row: str(row["first_position"]),
            "waiting": lambda row: str(row["events"]),
            "since": lambda row: age(row["parked_at"]),
            "error": lambda row: row["error"],
        },
        "Nothing is parked.",
    )


@app.command()
@door
def replay(
    view: Annotated[str | None, typer.Argument(metavar="[VIEW]", help="The read model.")] = None,
    stream: Annotated[
        str | None, typer.Argument(metavar="[STREAM]", help="Only this stream, such as job_….")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="What every read model has parked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take parked streams up again, once what broke them is put right."""
    if every == (view is not None):
        raise typer.BadParameter("name a read model, or give --all", param_hint="VIEW")
    with connect() as client:
        parked = client.pages("/projections/parked", view=view)
        waiting = Counter(row["view"] for row in parked if stream in (None, row["stream_id"]))
        answers: list[Json] = []
        with _bar("replaying") as progress:
            for name in [view] if view is not None else sorted(waiting):
                for answer in _replayed(client, name, stream, waiting[name]):
                    answers.append(answer)
                    done = sum(map(_tried, answers))
                    progress.update(progress.task_ids[0], completed=done, total=waiting.total())
    stuck = [row for answer in answers for row in answer["still_parked"]]
    if as_json:
        print_json(answers)
    else:
        followed = sum(len(answer["replayed"]) for answer in answers)
        events = sum(answer["events"] for answer in answers)
        talk.print(f"{followed} streams are followed again, {events} events folded", style="green")
        for row in stuck:
            where = f"{row['view']} {row['stream_id']} at position {row['first_position']}"
            talk.print(f"still parked: {escape(where)}: {escape(row['error'])}", style="red")
    if stuck:
        raise typer.Exit(1)


def _replayed(client: Client, name: str, stream: str | None, waiting: int) -> Iterator[Json]:
    """Answers until each was tried; the service takes up as many streams a request as fit into its time."""
    tried = 0
    while True:
        answer = client.post(at("projections", name, "replay"), ReplayParkedBody(stream_id=stream))
        yield answer
        tried += _tried(answer)
        if not answer["remaining"] or tried >= waiting:
            return


def _tried(answer: Json) -> int:
    return len(answer["replayed"]) + len(answer["still_parked"])


def _rebuilt(row: Json) -> str:
    last = row.get("rebuild")
    if last is None:
        return "–"
    if last["status"] == "running":
        return f"running, {last['progress']:.0%}"
    return str(last["status"])


@contextmanager
def _bar(doing: str) -> Iterator[Progress]:
    """A bar with one task."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=talk,
        transient=True,
    ) as progress:
        progress.add_task(escape(doing), total=None)
        yield progress
