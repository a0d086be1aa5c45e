"""`kinora events`: follow the organization's log, look at single events, and keep a copy of all."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from kinora.cli.output import connect, door, out, print_json, print_lines, talk
from kinora.cli.verifying import verify
from kinora.client import Json, Unreachable, at
from kinora.event_export import ExportIncomplete, export
from kinora.feed import Start, follow
from schemas.envelope import split_type

app = typer.Typer(no_args_is_help=True, help="The event log.")
app.command()(verify)

EventId = Annotated[str, typer.Argument(help="An event's id, evt_….")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


@app.command()
@door
def tail(
    after: Annotated[int | None, typer.Option(help="Begin behind this position; 0 is the beginning.")] = None,
    log_id: Annotated[
        str, typer.Option(help="The log that --after belongs to; another one is read from its beginning.")
    ] = "",
    types: Annotated[str, typer.Option(help="Only these types, such as kinora.job.succeeded.")] = "",
    job: Annotated[str, typer.Option(help="Only this job's events.")] = "",
    ndjson: Annotated[bool, typer.Option("--ndjson", help="Print whole events as NDJSON.")] = False,
    until_head: Annotated[bool, typer.Option(help="End when all history is printed.")] = False,
) -> None:
    """Print events as they are committed; Ctrl-C ends it."""
    event_filter: dict[str, object] = {}
    if types:
        event_filter["types"] = [name.strip() for name in types.split(",")]
    if job:
        event_filter["job_id"] = job
    start: Start = "latest" if after is None else after or "earliest"
    with connect() as client:
        frames = follow(
            client, start=start, event_filter=event_filter, log_id=log_id or None, start_over=True
        )
        for frame in frames:
            if frame["type"] == "reset":
                talk.print(
                    f"the log is {frame['log_id']} now ({frame['reason']}): starting over from its beginning",
                    style="yellow",
                )
            if frame["type"] == "caught_up" and until_head:
                return
            if frame["type"] != "event":
                continue
            event = frame["event"]
            if ndjson:
                print_lines([event])
                continue
            _print_line(event)


@app.command()
@door
def show(event_id: EventId) -> None:
    """Print one event, whole, as JSON."""
    with connect() as client:
        print_json(client.get(at("events", event_id)))


@app.command()
@door
def causes(event_id: EventId, as_json: AsJson = False) -> None:
    """Print what led to an event, back to the command or report that began it."""
    with connect() as client:
        found = client.get(at("events", event_id, "causes"))
        if as_json:
            print_json(found)
            return
        event = client.get(at("events", event_id))
    for each in (event, *found["data"]):
        _print_line(each)
    if found["complete"]:
        talk.print(f"began with {found['began_with']}, in {found['correlation_id']}", markup=False)
    else:
        more = found["data"][-1]["id"]
        talk.print(f"there are more: kinora events causes {more}", style="yellow")


@app.command()
@door
def effects(event_id: EventId, as_json: AsJson = False) -> None:
    """Print what came of an event, and of that, and so on, as a tree."""
    with connect() as client:
        event = client.get(at("events", event_id))
        found = list(client.pages(at("events", event_id, "effects")))
    if as_json:
        print_json(found)
        return
    depth = {event["id"]: 0}
    _print_line(event)
    for each in found:
        depth[each["id"]] = depth.get(each["causationid"], 0) + 1
        _print_line(each, indent=depth[each["id"]])
    if not found:
        talk.print("nothing came of it so far", style="dim")


@app.command("export")
@door
def export_events(
    file: Annotated[Path, typer.Argument(help="Where to; a file that broke off is gone on with.")],
    after: Annotated[int | None, typer.Option(min=0, help="Begin behind this position.")] = None,
    until: Annotated[
        int | None, typer.Option(min=0, help="End with this position; by default the newest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download the organization's events, one a line, in the bytes that the log holds.

    Run it again to go on where it stopped, or later to add what has happened since.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with connect() as client, Progress(*columns, TimeRemainingColumn(), console=talk, transient=True) as bars:
        bar = bars.add_task("events", total=None)
        try:
            done = export(
                client,
                file,
                after=after,
                until=until,
                report=lambda doing, position, last: bars.update(
                    bar, description=doing, completed=position, total=last
                ),
            )
        except (Unreachable, ExportIncomplete, KeyboardInterrupt):
            talk.print(f"to go on where it stopped: kinora events export {file}", markup=False)
            raise
    if as_json:
        print_json(
            {
                "file": str(file),
                "log_id": done.log_id,
                "first_position": done.first,
                "last_position": done.last,
                "until": done.until,
                "lines_added": done.lines,
            }
        )
    held = f"positions {done.first} to {done.last}" if done.first is not None else "no events"
    talk.print(
        f"{file} is complete up to position {done.until} of {done.log_id}: {held}, {done.lines} lines added",
        style="green",
        markup=False,
        highlight=False,
    )
    talk.print("later events are added by the same command; to verify, get a signed head: kinora audit fetch")


def _print_line(event: Json, indent: int = 0) -> None:
    kind = "  " * indent + split_type(event["type"])[0].removeprefix("kinora.")
    out.print(
        f"{event['position']:>6}  {event['time'][11:19]}  {kind:<30}  {event['subject']}  {event['actor']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
