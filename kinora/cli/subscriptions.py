"""`kinora subscriptions`: let a third party have the organization's events, over NATS or by webhook."""

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from kinora.cli import deliveries
from kinora.cli.datasets import AsJson
from kinora.cli.output import LocalFileError, age, connect, door, print_json, print_table, talk
from kinora.client import Client, Json, at
from kinora.local.private_file import write_private
from schemas.subscriptions import (
    CreateSubscriptionBody,
    CredentialsBody,
    DisableSubscriptionBody,
    EventFilter,
    RotateSecretBody,
)

app = typer.Typer(no_args_is_help=True, help="Third parties that get the organization's events.")
add = typer.Typer(no_args_is_help=True, help="Add a subscriber; its secret is written to a file, once.")
app.add_typer(add, name="add")
app.add_typer(deliveries.app)

READY_SECONDS = 10.0
SubscriptionArgument = Annotated[str, typer.Argument(metavar="SUBSCRIPTION", help="Its id: sub_…")]
NameArgument = Annotated[str, typer.Argument(help="What to call the subscriber.")]
Types = Annotated[list[str] | None, typer.Option("--type", help="Only events of this type; may be repeated.")]
Workspace = Annotated[str | None, typer.Option(help="Only events of this workspace: ws_…")]
Start = Annotated[
    str, typer.Option("--from", help="earliest, latest, or the position behind which to begin.")
]
Days = Annotated[float, typer.Option(min=0.001, max=366, help="How long the credentials hold.")]
Folder = Annotated[Path, typer.Option(help="Where the subscriber's private files are written.")]


@add.command("nats")
@door
def add_nats(
    name: NameArgument,
    types: Types = None,
    workspace: Workspace = None,
    start: Start = "latest",
    days: Days = 30.0,
    folder: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Add a subscriber that reads with a NATS client, and write what it needs into two files."""
    body = CreateSubscriptionBody(
        name=name,
        kind="nats",
        filter=EventFilter(types=tuple(types or ()), workspace_id=workspace),
        start=_start(start),
        expires_in_seconds=round(days * 86400),
    )
    _check_folder(folder)
    with connect() as client:
        made = client.post("/event-subscriptions", body)
        _write_credentials(folder, made["id"], made["connection"], made.pop("credentials"))
        _until_ready(client, made)
    _told(made, as_json=as_json)


@add.command("webhook")
@door
def add_webhook(
    name: NameArgument,
    url: Annotated[str, typer.Argument(help="Where the requests go: https://…")],
    types: Types = None,
    workspace: Workspace = None,
    stream: Annotated[str | None, typer.Option(help="Only events of this job, dataset, model …")] = None,
    start: Start = "latest",
    folder: Folder = Path(),
    as_json: AsJson = False,
) -> None:
    """Add a webhook, and write the secret that its receiver checks signatures with into a file."""
    wanted = EventFilter(types=tuple(types or ()), workspace_id=workspace, stream_id=stream)
    body = CreateSubscriptionBody(name=name, kind="webhook", filter=wanted, start=_start(start), url=url)
    _check_folder(folder)
    with connect() as client:
        made = client.post("/event-subscriptions", body)
    _write_secret(folder, made["id"], made.pop("signing_secret"))
    _told(made, as_json=as_json)


@app.command()
@door
def ls(as_json: AsJson = False) -> None:
    """List subscriptions, newest first."""
    with connect() as client:
        rows = list(client.pages("/event-subscriptions"))
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "id": lambda row: row["id"],
            "kind": lambda row: row["kind"],
            "status": lambda row: row["status"],
            "types": lambda row: ", ".join(row["filter"]["types"]) or "all",
            "age": lambda row: age(row["created_at"]),
            "name": lambda row: row["name"],
        },
        "No subscriptions yet. Add one: kinora subscriptions add nats NAME",
    )


@app.command()
@door
def show(subscription: SubscriptionArgument) -> None:
    """Show a subscription as JSON: where it reads, and how far it is."""
    with connect() as client:
        print_json(client.get(at("event-subscriptions", subscription)))


@app.command()
@door
def rm(subscription: SubscriptionArgument) -> None:
    """End a subscription for good; its credentials are void at once."""
    with connect() as client:
        client.delete(at("event-subscriptions", subscription))
    talk.print(f"subscription {escape(subscription)} has ended", markup=False)


@app.command()
@door
def credentials(
    subscription: SubscriptionArgument,
    days: Days = 30.0,
    keep_former: Annotated[
        bool, typer.Option("--keep-former", help="Let the credentials before these go on until they expire.")
    ] = False,
    folder: Folder = Path(),
) -> None:
    """Issue new NATS credentials, and write them over those before."""
    _check_folder(folder)
    body = CredentialsBody(expires_in_seconds=round(days * 86400), keep_former=keep_former)
    with connect() as client:
        issued = client.post(at("event-subscriptions", subscription, "credentials"), body)
    _write_credentials(folder, subscription, issued["connection"], issued)


@app.command()
@door
def rotate(
    subscription: SubscriptionArgument,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=720, help="How long deliveries are signed with the former one, too.")
    ] = 24.0,
    folder: Folder = Path(),
) -> None:
    """Give a webhook a new signing secret, and write it over the one before."""
    _check_folder(folder)
    body = RotateSecretBody(overlap_seconds=round(overlap_hours * 3600))
    with connect() as client:
        rotated = client.post(at("event-subscriptions", subscription, "rotate-secret"), body)
    _write_secret(folder, subscription, rotated["signing_secret"])


@app.command()
@door
def disable(
    subscription: SubscriptionArgument,
    reason: Annotated[str, typer.Option(help="For the log.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let a webhook rest; nothing is lost, it goes on where it stopped."""
    body = DisableSubscriptionBody(reason=reason)
    with connect() as client:
        _told(client.post(at("event-subscriptions", subscription, "disable"), body), as_json=as_json)


@app.command()
@door
def enable(subscription: SubscriptionArgument, as_json: AsJson = False) -> None:
    """Let a webhook go on where it stopped."""
    with connect() as client:
        _told(client.post(at("event-subscriptions", subscription, "enable")), as_json=as_json)


def _start(text: str) -> Literal["earliest", "latest"] | int:
    match text:
        case "earliest" | "latest":
            return text
        case _ if text.isdecimal():
            return int(text)
    raise typer.BadParameter(f"--from is {text!r}; give earliest, latest or a position such as 42")


def _check_folder(folder: Path) -> None:
    """Before anything is issued that is shown only once."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LocalFileError(f"{folder} cannot be made: {error.strerror}; name another --folder") from error


def _write_credentials(folder: Path, subscription_id: str, connection: Json, issued: Json) -> None:
    creds, where = folder / f"{subscription_id}.creds", folder / f"{subscription_id}.json"
    write_private(creds, issued["credentials"])
    write_private(where, json.dumps(connection, indent=2) + "\n")
    talk.print(f"{creds}: the credentials, valid until {issued['expires_at'][:16]} UTC", markup=False)
    talk.print(f"{where}: where to read with them", markup=False)


def _write_secret(folder: Path, subscription_id: str, secret: str) -> None:
    file = folder / f"{subscription_id}.secret"
    write_private(file, secret + "\n")
    talk.print(f"{file}: the receiver's signing secret", markup=False)


def _until_ready(client: Client, made: Json) -> None:
    """Wait for the consumer, which the orchestrator makes within moments."""
    deadline = time.monotonic() + READY_SECONDS
    path = at("event-subscriptions", made["id"])
    while client.get(path, min_position=made["last_position"])["reading"] is None:
        if time.monotonic() > deadline:
            talk.print("its consumer is not there yet; the orchestrator makes it once NATS is back")
            return
        time.sleep(0.1)


def _told(shown: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(shown)
        return
    talk.print(f"subscription {shown['name']} ({shown['kind']}) is {shown['status']}", markup=False)
    print(shown["id"])
