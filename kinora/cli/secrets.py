"""`kinora secrets`: credentials for places that datasets and models are imported from."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from kinora.cli.datasets import AsJson
from kinora.cli.output import LocalFileError, age, connect, door, print_json, print_table, talk
from kinora.client import at
from schemas.errors import KinoraError
from schemas.secrets import SecretName

app = typer.Typer(no_args_is_help=True, help="Credentials for places to import from; never shown again.")


class BadName(KinoraError):
    """A secret cannot be called so."""

    code = "bad_name"


@app.command("set")
@door
def set_(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, dot, dash, underscore.")],
    kind: Annotated[str, typer.Option(help="token, basic, query (of a signed URL) or s3.")] = "token",
    file: Annotated[Path | None, typer.Option(help="Read the value here instead of standard input.")] = None,
    username: Annotated[str, typer.Option(help="For basic.")] = "",
    access_key: Annotated[str, typer.Option(help="For s3; the value is the secret key.")] = "",
    endpoint_url: Annotated[str, typer.Option(help="For s3, such as https://s3.amazonaws.com.")] = "",
    region: Annotated[str, typer.Option(help="For s3.")] = "",
    as_json: AsJson = False,
) -> None:
    """Store or replace a credential; its value comes from standard input or a file."""
    _check_name(name)  # before anybody types a value
    body = {"kind": kind, "value": _value(file)}
    described = {
        "username": username,
        "access_key": access_key,
        "endpoint_url": endpoint_url,
        "region": region,
    }
    with connect() as client:
        secret = client.put(
            at("secrets", name), body | {key: text for key, text in described.items() if text}
        )
    if as_json:
        print_json(secret)
        return
    talk.print(f"secret {name} ({secret['kind']}) is stored", markup=False)


@app.command()
@door
def ls(as_json: AsJson = False) -> None:
    """List the workspace's secrets, without their values."""
    with connect() as client:
        rows = list(client.pages("/secrets"))
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "name": lambda row: row["name"],
            "kind": lambda row: row["kind"],
            "changed": lambda row: age(row["updated_at"]),
            "used": lambda row: age(row["last_used_at"]) if row["last_used_at"] else "–",
        },
        "No secrets yet. Store one: kinora secrets set NAME --kind token < FILE",
    )


@app.command()
@door
def rm(name: str) -> None:
    """Delete one; imports that need it fail from now on."""
    with connect() as client:
        client.delete(at("secrets", name))
    talk.print(f"secret {name} is deleted", markup=False)


def _check_name(name: str) -> None:
    try:
        TypeAdapter(SecretName).validate_python(name)
    except ValidationError:
        raise BadName(
            f"{name[:80]!r} cannot be the name of a secret: take 1 to 63 lower-case letters, digits, dots,"
            " dashes and underscores, a letter or digit first"
        ) from None


def _value(file: Path | None) -> str:
    if file is not None:
        value = file.read_text().strip()
    elif sys.stdin.isatty():
        value = typer.prompt("value", hide_input=True, err=True).strip()
    else:
        value = sys.stdin.read().strip()
    if not value:
        raise LocalFileError("the value is empty; give it on standard input or with --file")
    return value
