"""`kinora datasets`: add a folder of clips, list, show."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from kinora.cli.moment import At, AtPosition
from kinora.cli.output import age, connect, door, print_facts, print_json, print_table, size, talk
from kinora.cli.progress import add_folder, import_from, problems_text, retry_import
from kinora.client import Json, at
from kinora.sources import dataset_paths

app = typer.Typer(no_args_is_help=True, help="Videos with captions to train on.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
@door
def add(
    folder: Annotated[
        Path, typer.Argument(help="Folder with clips and captions.jsonl, .json, .csv or .parquet.")
    ],
    name: Annotated[str, typer.Option(help="Name to show; the folder's by default.")] = "",
    description: Annotated[str, typer.Option()] = "",
    resume: Annotated[str, typer.Option(help="Id of the one whose upload broke off, to go on with it.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait for the validation's verdict.")] = True,
    as_json: AsJson = False,
) -> None:
    """Upload a folder of clips and have an agent validate it."""
    paths = dataset_paths(folder)
    with connect() as client:
        item = add_folder(
            client, "datasets", folder, paths, name=name, description=description, resume=resume, wait=wait
        )
    if as_json:
        print_json(item)
        return
    facts = item.get("facts") or {}
    if left_out := facts.get("refused_rows"):
        talk.print(f"{left_out} of {facts['rows']} rows are left out:", style="yellow")
        _print_refused(facts)
    talk.print(f"dataset [bold]{item['name']}[/] is {item['status']}")
    print(item["id"])


@app.command("import")
@door
def import_(
    uri: Annotated[
        str, typer.Argument(help="https://…, s3://bucket/prefix, file:///server/folder or hf://owner/name.")
    ],
    name: Annotated[str, typer.Option(help="Name to show; the source's by default.")] = "",
    description: Annotated[str, typer.Option()] = "",
    secret: Annotated[str, typer.Option(help="Name of the secret that opens it (kinora secrets).")] = "",
    wait: Annotated[bool, typer.Option(help="Wait for the files and the validation's verdict.")] = True,
    as_json: AsJson = False,
) -> None:
    """Have the service fetch clips with captions from elsewhere and an agent validate it."""
    with connect() as client:
        item = import_from(
            client, "datasets", uri, name=name, description=description, secret=secret, wait=wait
        )
    if as_json:
        print_json(item)
        return
    talk.print(f"dataset [bold]{escape(item['name'])}[/] is {item['status']}")
    print(item["id"])


@app.command()
@door
def retry(
    dataset_id: str,
    wait: Annotated[bool, typer.Option(help="Wait for the files and the validation's verdict.")] = True,
) -> None:
    """Try a failed import again."""
    with connect() as client:
        item = retry_import(client, "datasets", dataset_id, wait=wait)
    talk.print(f"dataset [bold]{escape(item['name'])}[/] is {item['status']}")


@app.command()
@door
def ls(as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    with connect() as client:
        rows = list(client.pages("/datasets"))
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "id": lambda row: row["id"],
            "status": lambda row: row["status"],
            "clips": lambda row: str((row.get("facts") or {}).get("clips", "–")),
            "size": lambda row: size(row.get("size_bytes")),
            "age": lambda row: age(row["created_at"]),
            "name": lambda row: row["name"],
        },
        "No datasets yet. Add one: kinora datasets add FOLDER",
    )


@app.command()
@door
def show(
    dataset_id: str, at_time: At = None, at_position: AtPosition = None, as_json: AsJson = False
) -> None:
    """Show one dataset with its validation report."""
    with connect() as client:
        item = client.get(at("datasets", dataset_id), at=at_time, at_position=at_position)
    if as_json:
        print_json(item)
        return
    facts = item.get("facts") or {}
    print_facts(
        {
            "id": item["id"],
            "name": item["name"],
            "description": item.get("description") or None,
            "status": item["status"],
            "source": (item.get("source") or {}).get("uri"),
            "import failed": (item.get("import_problem") or {}).get("message"),
            "files": item.get("file_count"),
            "size": size(item.get("size_bytes")),
            "clips": facts.get("clips"),
            "examples": facts.get("examples"),
            "of them text only": facts.get("text_examples") or None,
            "of them for validation": facts.get("validation_examples"),
            "answers": facts.get("turns") or None,
            "rows left out": facts.get("refused_rows") or None,
            "captions": _captions(facts),
            "frames": facts.get("frames"),
            "seconds": facts.get("duration_seconds"),
            "content sha256": item.get("content_sha256"),
        }
    )
    _print_warnings(facts)
    if item.get("problems"):
        talk.print(problems_text(item), style="red", markup=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def frames(
    context: typer.Context,
    clip: Annotated[Path, typer.Argument(help="A video file on this machine; needs no service.")],
) -> None:
    """Show the frames that a training takes of a clip: --frames N, --size N, --sheet FILE, --json."""
    from qlora_engine.data.show import main as show_frames  # PyAV and numpy, which nothing else here needs

    raise typer.Exit(show_frames([str(clip), *context.args]))


@app.command()
@door
def rm(dataset_id: str) -> None:
    """Delete one; jobs that use it keep what they pinned."""
    with connect() as client:
        client.delete(at("datasets", dataset_id))
    talk.print(f"dataset {dataset_id} is deleted", markup=False)


def _captions(facts: Json) -> str | None:
    if not facts.get("row_format"):
        return None
    return f"{facts['row_format'].replace('_', '/')} rows in {facts['file_format']}"


def _print_refused(facts: Json) -> None:
    for refused in facts.get("refused") or ():
        talk.print(f"left out {refused['where']}: {refused['message']}", style="yellow", markup=False)


def _print_warnings(facts: Json) -> None:
    _print_refused(facts)
    for warning in facts.get("warnings") or ():
        talk.print(f"warning {warning['where']}: {warning['message']}", style="yellow", markup=False)
