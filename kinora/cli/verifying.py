"""`kinora events verify`: is this export what was signed?"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from kinora.cli.output import EXIT_CONFLICT, door, out, print_facts, print_json, talk
from kinora.cli.progress import transfer_bar
from kinora.verification.lines import FileUnfit
from kinora.verification.verify import Evidence, Verdict
from kinora.verification.verify import verify as judge


@door
def verify(
    files: Annotated[
        list[Path],
        typer.Argument(
            exists=True, readable=True, help="The folder of `kinora audit fetch`, or export files in order."
        ),
    ],
    head: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Answer of /audit/heads/….")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Answer of /audit/keys, or a PEM file.")
    ] = None,
    leaves: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Answer of /audit/leaves, from 0 on.")
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="A head kept from before; may be repeated."),
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="The export begins behind this position.")] = 0,
    until: Annotated[
        int | None, typer.Option(min=0, help="Verify up to this position; what is behind it is left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Verify an export offline; names the first wrong event, and exits with 5 where there is one."""
    evidence = _evidence(files, head, key, leaves)
    evidence = replace(evidence, earlier=(*evidence.earlier, *(earlier or ())), after=after, until=until)
    with transfer_bar() as report:
        verdict = judge(evidence, report)
    if as_json:
        print_json(verdict.model_dump(mode="json"))
    else:
        _say(verdict)
    if not verdict.verified:
        raise typer.Exit(EXIT_CONFLICT)


def _evidence(files: list[Path], head: Path | None, key: Path | None, leaves: Path | None) -> Evidence:
    if len(files) == 1 and files[0].is_dir():
        found = Evidence.folder(files[0])
        return replace(found, head=head or found.head, keys=key or found.keys, leaves=leaves or found.leaves)
    if folders := [file for file in files if file.is_dir()]:
        raise FileUnfit(f"{folders[0]} is a folder; name it alone, or name export files")
    if head is None or key is None:
        raise FileUnfit(
            "an export is verified by a signed head and a public key: give --head and --key;"
            " kinora audit fetch FOLDER gets them, with the events and their leaf hashes"
        )
    return Evidence(tuple(files), head, key, leaves)


def _say(verdict: Verdict) -> None:
    finding = verdict.finding
    facts: dict[str, object] = {
        "organization": verdict.organization,
        "log": verdict.log_id,
        "head": f"{verdict.head}, signed {verdict.signed_at} at position {verdict.position}",
        "key": verdict.key_id,
        "events": verdict.events,
        "earlier heads": ", ".join(map(str, verdict.earlier_heads)) or None,
    }
    if finding is not None:
        facts |= {
            "first wrong": f"{finding.what}, {finding.how}",
            "event": finding.event_id,
            "where": f"{finding.file} line {finding.line}",
            "why": finding.detail,
        }
    print_facts(facts)
    if verdict.left_out:
        talk.print(f"{verdict.left_out} lines behind --until were left out", style="yellow")
    if not verdict.verified:
        out.print(f"[bold red]not verified[/]: {escape(verdict.reason or '')}", soft_wrap=True)
    elif verdict.events == verdict.of:
        out.print("[bold green]verified[/]: every event up to the head is there, unaltered and in order")
    else:
        first = verdict.first or 0
        part = f"{first} to {first + verdict.events - 1} of {verdict.of}"
        out.print(
            f"[bold green]verified[/]: these are events {part}, unaltered, in order, and none is missing"
            " between them",
            soft_wrap=True,
        )
        talk.print(
            "at which positions the events around them stand is not signed: compare these numbers with those"
            " of the other parts, or verify all parts together",
            style="yellow",
        )
