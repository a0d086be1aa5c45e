"""`kinora storage`: what is stored for whom, and deleting what nobody needs; for the operator."""

import time
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kinora.cli.datasets import AsJson
from kinora.cli.output import connect, door, print_json, print_table, size, talk
from kinora.client import Client, Json, at
from schemas.api import CollectBody

app = typer.Typer(no_args_is_help=True, help="The object store: usage, and collecting what nobody needs.")

_LOOK_SECONDS = 0.3


@app.command()
@door
def gc(
    dry_run: Annotated[bool, typer.Option(help="Only tell what would go.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is done.")] = True,
    as_json: AsJson = False,
) -> None:
    """Delete objects and upload sessions that nobody needs any more."""
    with connect() as client:
        collection = client.post("/storage/collections", CollectBody(dry_run=dry_run))
        if wait:
            collection = _followed(client, collection)
    if as_json:
        print_json(collection)
    elif not wait:
        talk.print(f"collection {collection['id']} is {collection['state']}")
    else:
        _print_outcome(collection)
    if collection["state"] == "failed":
        talk.print(f"ended early: {collection['error']}", style="red", markup=False)
        raise typer.Exit(1)


@app.command()
@door
def usage(as_json: AsJson = False) -> None:
    """Show what is stored, by organization and purpose."""
    with connect() as client:
        collection = _followed(client, client.post("/storage/collections", CollectBody(dry_run=True)))
    if collection["state"] == "failed":
        talk.print(f"the store could not be read: {collection['error']}", style="red", markup=False)
        raise typer.Exit(1)
    rows = collection["outcome"]["usage"]
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "organization": lambda row: row["organization_id"],
            "purpose": lambda row: row["purpose"],
            "objects": lambda row: str(row["objects"]),
            "size": lambda row: size(row["bytes"]),
        },
        "Nothing is stored yet.",
    )


def _followed(client: Client, collection: Json) -> Json:
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=talk,
        transient=True,
    ) as progress:
        task = progress.add_task("waiting for the orchestrator", total=None)
        while collection["state"] in ("requested", "running"):
            if collection["state"] == "running":
                progress.update(task, description=f"looking at objects: {collection['seen']}")
            time.sleep(_LOOK_SECONDS)
            collection = client.get(at("storage", "collections", str(collection["id"])))
    return collection


def _print_outcome(collection: Json) -> None:
    outcome = collection["outcome"]
    rows = [{"what": purpose, **amount} for purpose, amount in outcome["by_purpose"].items()]
    rows += [{"what": name, "objects": count} for name, count in outcome["swept"].items() if count]
    print_table(
        rows,
        {
            "what": lambda row: row["what"].replace("_", " "),
            "count": lambda row: str(row["objects"]),
            "size": lambda row: size(row.get("bytes")),
        },
        "Nothing would go." if collection["dry_run"] else "There was nothing to delete.",
    )
    for passed in outcome["passed_over"]:
        talk.print(
            f"nothing of {passed['organization_id']} was touched: {passed['reason']}",
            style="yellow",
            markup=False,
        )
    total = outcome["total"]
    verb = "would be deleted" if collection["dry_run"] else "deleted"
    talk.print(f"{collection['seen']} objects looked at; {total['objects']} ({size(total['bytes'])}) {verb}")
