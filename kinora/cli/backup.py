"""`kinora backup` and `kinora restore`: log, credentials and objects, kept and made again."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from command_api.backup.errors import KeysLocked
from command_api.backup.folder import BackupFolder
from command_api.backup.manifest import Manifest
from command_api.backup.progress import Phase, Report
from kinora.cli.datasets import AsJson
from kinora.cli.output import LocalFileError, door, print_facts, print_json, size, talk
from kinora.settings import data_folder

# `kinora.backups` is imported by the commands that need it: the object store's client takes half a second,
# which every other command would pay too.


class _TargetOrCommand(TyperGroup):
    """`kinora backup TARGET` is short for `kinora backup create TARGET`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["create", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_TargetOrCommand,
    no_args_is_help=True,
    help="Back up an installation: kinora backup TARGET [OPTIONS], running or not.",
)

PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File whose first line seals the keys; asked for on a terminal when left out."),
]
Settings = Annotated[
    Path | None,
    typer.Option(help="API settings of an installation on several machines, instead of a data folder."),
]
Target = Annotated[Path, typer.Argument(help="The backup's folder.")]


@app.command()
@door
def create(
    target: Annotated[Path, typer.Argument(help="A new folder, or one that an earlier backup made.")],
    passphrase_file: PassphraseFile = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Leave the keys out; keep secrets.json elsewhere then.")
    ] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Back up what cannot be made again. An earlier backup in TARGET is replaced in the end."""
    passphrase = None if without_keys else _passphrase(passphrase_file, confirm=True)
    from kinora import backups

    with _bars() as report:
        manifest = asyncio.run(backups.create(target, data_folder(), passphrase, settings, report))
    _show(manifest, as_json)
    if manifest.left_out_tables:
        talk.print(f"left out, not Kinora's: {', '.join(manifest.left_out_tables)}", style="yellow")
    if manifest.objects.lost:
        talk.print(
            f"{manifest.objects.lost} objects that are needed are missing or damaged in the object store;"
            " the backup holds everything else",
            style="bold red",
        )
        raise typer.Exit(1)
    talk.print(f"{target} holds a whole backup; check it with: kinora backup verify {target}", style="green")


@app.command()
@door
def verify(target: Target, passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """Check every hash, the log's order, and that no object is missing; with a passphrase the keys too."""
    from kinora import backups

    folder = BackupFolder(target)
    with _bars() as report:
        manifest = asyncio.run(backups.verify(folder, report)).manifest
    if passphrase_file is not None:
        backups.keys_in(folder, manifest, _passphrase(passphrase_file))
    _show(manifest, as_json)
    talk.print(f"{target} is whole", style="green")


@app.command()
@door
def keys(target: Target, file: Path, passphrase_file: PassphraseFile = None) -> None:
    """Write the keys of a backup, in the clear, to a private FILE."""
    from kinora import backups

    backups.write_keys(BackupFolder(target), file, _passphrase(passphrase_file))
    talk.print(f"{file} holds the keys: whoever reads it can read everything", style="yellow")


@door
def restore(
    target: Target,
    home: Annotated[Path | None, typer.Option(help="A new data folder; by default KINORA_HOME.")] = None,
    passphrase_file: PassphraseFile = None,
    secrets: Annotated[
        Path | None, typer.Option(help="The former secrets.json, for a backup without keys.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Make a new installation of a backup. Nothing that exists is overwritten."""
    from kinora import backups

    backup, root = BackupFolder(target), (home or data_folder()).absolute()
    if settings is None:
        backups.refuse_home(backup, root)
    sealed = secrets is None and backups.has_keys(backup)
    passphrase = _passphrase(passphrase_file) if sealed else None
    with _bars() as report:
        done = asyncio.run(backups.restore(backup, root, passphrase, secrets, settings, report))
    facts: dict[str, object] = {
        "log": done.log_id,
        "predecessor": done.predecessor,
        "events": done.events,
        "head": done.head,
        "objects": done.objects,
        "lost": done.lost,
    }
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)
    talk.print("restored", style="green")
    if done.lost:
        talk.print(f"{done.lost} objects were lost before the backup was made", style="yellow")
    start = f"KINORA_HOME={root} kinora up" if settings is None else "the API, then the other roles"
    talk.print(f"Start it: {start}", highlight=False)
    for line in (
        "Read models fill from the log first.",
        "Jobs that were running are queued again when their leases have run out.",
        "Followers of the old log are told to start over.",
        "Agents on other machines go on where they reach it at the old address; else enrol them.",
    ):
        talk.print(f"- {line}", highlight=False)


def _passphrase(file: Path | None, *, confirm: bool = False) -> SecretStr:
    if file is not None:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise LocalFileError(f"--passphrase-file {file} cannot be read: {error}") from None
        return SecretStr(lines[0] if lines else "")
    if not sys.stdin.isatty():
        raise KeysLocked("give the passphrase of the keys with --passphrase-file: nobody is here to be asked")
    return SecretStr(
        typer.prompt("passphrase of the keys", hide_input=True, confirmation_prompt=confirm, err=True)
    )


def _show(manifest: Manifest, as_json: bool) -> None:
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    print_facts(
        {
            "backup": manifest.backup_id,
            "made": f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC by Kinora {manifest.kinora_version}",
            "log": manifest.log_id,
            "events": manifest.events,
            "head": manifest.head,
            "objects": f"{manifest.objects.names}, {size(manifest.objects.size_bytes)}",
            "keys": "sealed" if manifest.of_kind("keys") else "left out",
        }
    )


@contextmanager
def _bars() -> Iterator[Report]:
    """One bar per phase, in bytes or rows."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
        console=talk,
        transient=True,
    ) as progress:
        tasks: dict[Phase, TaskID] = {}

        def report(phase: Phase, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total, amount="")
            amount = f"{size(done)} of {size(total)}" if phase.endswith("objects") else f"{done} of {total}"
            progress.update(tasks[phase], completed=done, total=total, amount=amount)

        yield report
