"""`kinora audit`: what proves that the log is as it was."""

from pathlib import Path
from typing import Annotated

import typer

from kinora.audit import fetch as fetch_into
from kinora.cli.output import connect, door, print_facts, print_json, talk
from kinora.cli.progress import transfer_bar

app = typer.Typer(no_args_is_help=True, help="Signed heads and proofs of the log.")


@app.command()
@door
def fetch(
    folder: Annotated[Path, typer.Argument(help="Where the files go; called again, only what is new comes.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the head as JSON.")] = False,
) -> None:
    """Download your events, their leaf hashes, the latest signed head and the public keys."""
    with connect() as client, transfer_bar() as report:
        fetched = fetch_into(client, folder, report)
    if fetched.new_keys:
        talk.print(
            f"{folder / 'keys.json'} does not know these keys of the service: {', '.join(fetched.new_keys)};"
            " ask its operator, and add them from /audit/keys if they are right",
            style="yellow",
        )
    head = fetched.head
    if as_json:
        print_json(head.model_dump(mode="json"))
        return
    size = head.tree.size if head.tree is not None else 0
    print_facts(
        {"head": head.head.number, "position": head.head.position, "events": size, "key": head.key_id}
    )
    talk.print(f"verify offline with: kinora events verify {folder}", style="dim")
