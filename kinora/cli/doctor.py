"""`kinora doctor`: looks at this machine and the running service, and says what to do about what is wrong."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from kinora.cli.datasets import AsJson
from kinora.cli.output import door, out, print_json, talk
from kinora.doctor.finding import Finding
from kinora.local.folder import DataFolder
from kinora.settings import data_folder

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failed": "[red]✗[/]"}


@door
def doctor(
    as_json: AsJson = False,
    probe: Annotated[bool, typer.Option(help="Try the engine's 4-bit kernel, which takes seconds.")] = True,
) -> None:
    """Look for what is wrong, and say what to do. Exits with 1 when something has failed."""
    # Its drivers of servers take longer to import than most commands take.
    from kinora.doctor.examination import examined

    with talk.status("looking …"):
        findings = examined(DataFolder(data_folder()), probe=probe)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _show(finding)
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    mark = _MARKS[finding.verdict]
    out.print(f"{mark} [bold]{escape(finding.name)}[/]  {escape(finding.detail)}", highlight=False)
    if finding.remedy:
        out.print(f"    → {escape(finding.remedy)}", highlight=False)
