"""What a benchmark found: a table for people, one JSON object as the last line for programs."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

_LIBRARIES = ("kinora", "eventsourcing", "fastapi", "uvicorn", "psycopg", "nats-py")


@dataclass(frozen=True, slots=True)
class Result:
    """One figure; `target` is what it should not exceed, or should reach when `at_least`."""

    metric: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """None where nothing was asked for."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"met": self.met}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def versions(extra: Sequence[str] = ()) -> dict[str, str]:
    """Of everything that the figures depend on."""
    found = {name: version(name) for name in (*_LIBRARIES, *extra)}
    return {"python": platform.python_version(), "cores": str(_cores()), "commit": _commit()} | found


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def show(name: str, results: Sequence[Result], about: dict[str, str], *, as_json: bool) -> None:
    """Print the figures."""
    if as_json:
        found = [result.as_json() for result in results]
        print(json.dumps({"benchmark": name, "results": found, "versions": about}))
        return
    table = Table(title=f"benchmark {name}", title_justify="left")
    for column in ("metric", "value", "target", ""):
        table.add_column(column, justify="right" if column in ("value", "target") else "left")
    for result in results:
        bound = "" if result.target is None else f"{'≥' if result.at_least else '≤'} {result.target:g}"
        mark = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[result.met]
        table.add_row(result.metric, f"{result.value:,.4g} {result.unit}", bound, mark)
    console = Console()
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), style="dim", highlight=False)
