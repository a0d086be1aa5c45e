"""Assembles the command line."""

from importlib.metadata import version
from typing import Annotated

import typer

from kinora.cli import (
    agents,
    audit,
    backup,
    datasets,
    events,
    jobs,
    models,
    projections,
    roles,
    secrets,
    storage,
    subscriptions,
)
from kinora.cli.demo import demo
from kinora.cli.doctor import doctor
from kinora.cli.nats import nats_setup
from kinora.cli.up import up
from kinora.cli.users import app as users

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold secrets
    help="Fine-tune video-text models with QLoRA, every step an event.",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"kinora {version('kinora')}")
        raise typer.Exit


@app.callback()
def kinora(
    _asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What holds for every command."""


app.command()(demo)
app.command()(up)
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")
app.add_typer(jobs.app, name="jobs")
app.add_typer(agents.app, name="agents")
app.add_typer(events.app, name="events")
app.add_typer(audit.app, name="audit")
app.add_typer(secrets.app, name="secrets")
app.add_typer(subscriptions.app, name="subscriptions")
app.add_typer(storage.app, name="storage")
app.add_typer(users, name="users")
app.command()(doctor)
app.command()(nats_setup)
app.add_typer(backup.app, name="backup")
app.command()(backup.restore)
for role in (roles.api, roles.orchestrator, roles.auditor, roles.agent):
    app.command()(role)
# Alone the role, with a subcommand what one can do to read models.
app.add_typer(
    projections.app,
    name="projections",
    callback=roles.projections,
    invoke_without_command=True,
    no_args_is_help=False,
)
