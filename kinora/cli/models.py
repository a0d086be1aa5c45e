"""`kinora models`: add a Hugging Face checkpoint folder, list, show, make a tiny one."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from kinora.artifacts import download_model
from kinora.cli.datasets import AsJson
from kinora.cli.moment import At, AtPosition
from kinora.cli.output import age, connect, door, print_facts, print_json, print_table, size, talk
from kinora.cli.progress import add_folder, import_from, problems_text, retry_import
from kinora.client import at
from kinora.sources import model_paths
from schemas.training import MergedDtype

TinyFamily = Literal["smolvlm", "qwen2_5_vl", "qwen3_vl", "llama", "qwen2", "qwen3"]

app = typer.Typer(no_args_is_help=True, help="Base models, and the adapters that jobs made.")


@app.command()
@door
def add(
    folder: Annotated[Path, typer.Argument(help="Hugging Face checkpoint folder (safetensors).")],
    name: Annotated[str, typer.Option(help="Name to show; the folder's by default.")] = "",
    description: Annotated[str, typer.Option()] = "",
    resume: Annotated[str, typer.Option(help="Id of the one whose upload broke off, to go on with it.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait for the validation's verdict.")] = True,
    as_json: AsJson = False,
) -> None:
    """Upload a base model and have an agent load it in 4 bits."""
    paths = model_paths(folder)
    with connect() as client:
        item = add_folder(
            client, "models", folder, paths, name=name, description=description, resume=resume, wait=wait
        )
    if as_json:
        print_json(item)
        return
    talk.print(f"model [bold]{item['name']}[/] is {item['status']}")
    print(item["id"])


@app.command("pull")
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
    """Have the service fetch a base model from elsewhere and an agent validate it."""
    with connect() as client:
        item = import_from(
            client, "models", uri, name=name, description=description, secret=secret, wait=wait
        )
    if as_json:
        print_json(item)
        return
    talk.print(f"model [bold]{escape(item['name'])}[/] is {item['status']}")
    print(item["id"])


@app.command()
@door
def retry(
    model_id: str,
    wait: Annotated[bool, typer.Option(help="Wait for the files and the validation's verdict.")] = True,
) -> None:
    """Try a failed import again."""
    with connect() as client:
        item = retry_import(client, "models", model_id, wait=wait)
    talk.print(f"model [bold]{escape(item['name'])}[/] is {item['status']}")


@app.command()
@door
def ls(as_json: AsJson = False) -> None:
    """List base models and adapters, newest first."""
    with connect() as client:
        rows = list(client.pages("/models"))
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "id": lambda row: row["id"],
            "kind": lambda row: row["kind"],
            "status": lambda row: row["status"],
            "family": lambda row: row.get("family") or "–",
            "size": lambda row: size(row.get("size_bytes")),
            "age": lambda row: age(row["created_at"]),
            "name": lambda row: row["name"],
        },
        "No models yet. Add one: kinora models add FOLDER, or kinora models make-tiny FOLDER first",
    )


@app.command()
@door
def show(model_id: str, at_time: At = None, at_position: AtPosition = None, as_json: AsJson = False) -> None:
    """Show one model."""
    with connect() as client:
        item = client.get(at("models", model_id), at=at_time, at_position=at_position)
    if as_json:
        print_json(item)
        return
    facts = item.get("facts") or {}
    print_facts(
        {name: item.get(name) for name in ("id", "name", "kind", "status", "job_id", "base_model_id")}
        | {
            "source": (item.get("source") or {}).get("uri"),
            "import failed": (item.get("import_problem") or {}).get("message"),
        }
        | {"size": size(item.get("size_bytes")), "content sha256": item.get("content_sha256")}
        | {name.replace("_", " "): value for name, value in facts.items()}
    )
    if item.get("problems"):
        talk.print(problems_text(item), style="red", markup=False)


@app.command()
@door
def download(
    model_id: str,
    folder: Annotated[Path, typer.Argument(help="Where to put it.")],
) -> None:
    """Download a base model, or all that a job left, every file verified by its SHA-256."""
    with connect() as client:
        download_model(client, model_id, folder)
    print(folder.resolve())


@app.command()
@door
def merge(
    base: Annotated[Path, typer.Argument(help="Folder of the base model that the adapter was trained on.")],
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter (kinora jobs adapter).")],
    output: Annotated[Path, typer.Argument(help="New folder for the merged model.")],
    dtype: Annotated[
        MergedDtype, typer.Option(help="Type of the weights; auto: what the base is stored in.")
    ] = "auto",
    cpu: Annotated[bool, typer.Option("--cpu", help="Compute on the CPU, whatever else there is.")] = False,
) -> None:
    """Merge an adapter into its base on this machine: an ordinary checkpoint, compared before it is kept."""
    # In a process of its own, as below.
    command = [sys.executable, "-m", "qlora_engine.merge", str(base), str(adapter), str(output)]
    command += ["--dtype", dtype, *(["--cpu"] if cpu else [])]
    if returned := subprocess.run(command, check=False).returncode:
        raise typer.Exit(returned)
    print(output.resolve())


@app.command()
@door
def make_tiny(
    folder: Annotated[Path, typer.Argument(help="Folder to write the checkpoint to.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    family: Annotated[
        TinyFamily | None, typer.Option(help="Make one of these instead, with random weights.")
    ] = None,
) -> None:
    """Make a tiny SmolVLM from scratch, pre-trained on captioned stills (about 12 s on 2 cores)."""
    # The engine runs in a process of its own, so that the CLI stays free of torch.
    command = [sys.executable, "-m", "qlora_engine.models.tiny", str(folder), "--seed", str(seed)]
    done = subprocess.run([*command, *(() if family is None else ("--family", family))], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    print(folder.resolve())


@app.command()
@door
def rm(model_id: str) -> None:
    """Delete one; jobs that use it keep what they pinned."""
    with connect() as client:
        client.delete(at("models", model_id))
    talk.print(f"model {model_id} is deleted", markup=False)
