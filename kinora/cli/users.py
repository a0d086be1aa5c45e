"""`kinora users`: forgetting a person."""

import re
from typing import Annotated

import typer

from kinora.cli.datasets import AsJson
from kinora.cli.output import connect, door, print_json, talk
from kinora.client import at
from schemas.errors import KinoraError

USER_ID = re.compile(r"usr_[0-9a-f]{32}\Z")

app = typer.Typer(no_args_is_help=True, help="Persons of this installation.")


class NoUserId(KinoraError):
    """It is something else, perhaps a name: that goes into no address, because addresses are logged."""

    code = "no_user_id"


class NotConfirmed(KinoraError):
    """Nobody said yes."""

    code = "not_confirmed"


@app.command()
@door
def erase(
    user_id: Annotated[str, typer.Argument(help="usr_…, or `me` for yourself.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget a person for good: key, password, sessions, memberships; the log keeps its events."""
    if user_id != "me" and not USER_ID.match(user_id):
        raise NoUserId(f"user_id {user_id!r} is no id of a person; give usr_… or `me` (kinora users --help)")
    with connect() as client:
        identifier = str(client.get("/users/me")["id"]) if user_id == "me" else user_id
        if not yes and not typer.confirm(f"forget {identifier} for good? nobody can undo this", err=True):
            raise NotConfirmed(
                f"{identifier} is as before; confirm, or pass --yes where there is no terminal"
            )
        erased = client.post(at("users", identifier, "erase"), {"confirm": identifier})
    if as_json:
        print_json(erased)
        return
    talk.print(
        f"{identifier} is forgotten; backups made before hold the key until they are deleted", markup=False
    )
