"""`kinora nats-setup`: what a NATS server of one's own has to trust, and what the roles sign with."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from command_api.nats_auth.accounts import trust
from command_api.nats_auth.keys import new_seed, public_key
from command_api.settings import NatsOperatorSettings
from kinora.cli.output import LocalFileError, door, talk
from kinora.local.private_file import revealed_json, write_private
from schemas.base import Message
from schemas.settings import NatsAccount, NatsSettings


class NatsSecrets(Message):
    """The fields `nats` (API and orchestrator) and `nats_operator` (orchestrator) of the roles' settings."""

    nats: NatsSettings
    nats_operator: NatsOperatorSettings


@door
def nats_setup(
    folder: Annotated[Path, typer.Argument(help="Where the two files go.")],
    url: Annotated[str, typer.Option(help="Address of the server, for the control plane.")],
    agents_url: Annotated[str | None, typer.Option(help="Address for agents, where it differs.")] = None,
    subscribers_url: Annotated[
        str | None, typer.Option(help="Address for subscribers to events, where it differs.")
    ] = None,
) -> None:
    """Make operator and accounts for a NATS server of your own."""
    secrets_file, trust_file = folder / "nats-secrets.json", folder / "nats-trust.json"
    for file in (secrets_file, trust_file):
        if file.exists():
            raise LocalFileError(
                f"{file} exists, and new keys would shut out whoever uses it; remove it first"
            )
    operator, system = SecretStr(new_seed("operator")), SecretStr(new_seed("account"))
    nats = NatsSettings(
        url=url,
        agents_url=agents_url,
        subscribers_url=subscribers_url,
        control=_account(),
        agents=_account(),
        subscribers=_account(),
    )
    secrets = NatsSecrets(
        nats=nats, nats_operator=NatsOperatorSettings(operator_seed=operator, system_seed=system)
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_private(secrets_file, revealed_json(secrets))
    believed = trust(nats, operator, system, issued_at=int(time.time()))
    write_private(trust_file, json.dumps(believed, indent=2) + "\n")
    talk.print(f"[bold]{trust_file}[/]: include it in the server's configuration")
    talk.print(f"[bold]{secrets_file}[/]: its fields belong into the settings of API and orchestrator")


def _account() -> NatsAccount:
    seed = new_seed("account")
    return NatsAccount(account=public_key(seed), signing_seed=SecretStr(seed))
