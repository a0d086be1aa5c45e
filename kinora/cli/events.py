"""`kinora events`: follow the organization's log."""

from typing import Annotated

import typer

from kinora.cli.output import connect, door, out, print_lines, talk
from kinora.feed import Start, follow
from schemas.envelope import split_type

app = typer.Typer(no_args_is_help=True, help="The event log.")


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
            time = event["time"][11:19]
            out.print(
                f"{frame['position']:>6}  {time}  {split_type(event['type'])[0].removeprefix('kinora.'):<30}"
                f"  {event['subject']}  {event['actor']}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
