"""The answer of `POST /jobs/plan` as a picture in the terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kinora.client import Json
from kinora.watch import duration
from schemas.footprint import Preflight
from schemas.job_plan import AgentOutlook, JobPlan, Range

_GIB = 2**30
_BAR = 30
_VERDICTS = {
    "fits": ("fits", "green"),
    "may_fit": ("may fit", "yellow"),
    "does_not_fit": ("does not fit", "red"),
    "unknown": ("not known", "dim"),
}


def job_plan(answer: Json) -> RenderableType:
    """Steps and tokens, the agents, the parts of the peak on the best of them, and what to know."""
    plan = JobPlan.model_validate(answer)
    return Group(*_parts(plan))


def _parts(plan: JobPlan) -> Iterator[RenderableType]:
    yield _figures(plan)
    if plan.agents:
        yield Text()
        yield _agents(plan)
    shown = next((agent for agent in plan.agents if agent.preflight is not None), None)
    if shown is not None and shown.preflight is not None:
        yield Text(f"\nPeak memory on {shown.name}, likely", style="bold")
        yield _bars(shown.preflight)
    if plan.refusal is not None:
        yield Text(f"\nwould be refused ({plan.refusal.code}): {plan.refusal.message}", style="bold red")
    for warning in plan.warnings:
        yield Text(f"\nwarning ({warning.code}): {warning.message}", style="yellow")
    if plan.assumptions:
        yield Text("\nEverything here is an estimate:", style="dim")
        for sentence in plan.assumptions:
            yield Text(f"· {sentence}", style="dim")


def _figures(plan: JobPlan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    rows = f"{plan.training_examples:,} rows to train on, {plan.held_out_examples:,} held out"
    table.add_row("steps", f"{plan.total_steps:,} of {rows}")
    table.add_row("tokens", _numbers(plan.tokens))
    table.add_row("largest pass", f"{_numbers(plan.largest_pass_tokens)} tokens")
    return table


def _agents(plan: JobPlan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("agent", "verdict", "peak GiB", "room GiB", "time", "energy Wh"):
        table.add_column(name)
    for agent in plan.agents:
        verdict, style = _VERDICTS[agent.verdict]
        table.add_row(
            Text(agent.name if agent.online else f"{agent.name} (offline)"),
            Text(verdict, style=style),
            _gibibytes(agent.peak_bytes),
            "–" if agent.room_bytes is None else f"{agent.room_bytes / _GIB:.2f}",
            _durations(agent),
            "–" if agent.watt_hours is None else _numbers(agent.watt_hours),
        )
    return table


def _bars(preflight: Preflight) -> Table:
    """The parts of the peak, the largest first."""
    table = Table.grid(padding=(0, 2))
    parts = sorted(preflight.parts, key=lambda part: -part.size_bytes)
    for part in parts:
        bar = ProgressBar(total=max(1, parts[0].size_bytes), completed=max(0, part.size_bytes), width=_BAR)
        table.add_row(part.name, bar, f"{part.size_bytes / _GIB:.2f} GiB")
    table.add_row("together", "", f"{preflight.peak_bytes / _GIB:.2f} GiB", style="bold")
    return table


def _gibibytes(peak: Range | None) -> str:
    if peak is None:
        return "–"
    return f"{peak.likely / _GIB:.2f} ({peak.least / _GIB:.2f} to {peak.most / _GIB:.2f})"


def _durations(agent: AgentOutlook) -> str:
    if agent.seconds is None:
        return "–"
    likely, least, most = map(duration, (agent.seconds.likely, agent.seconds.least, agent.seconds.most))
    return f"{likely} ({least} to {most})"


def _numbers(found: Range) -> str:
    likely, least, most = (
        f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
        for value in (found.likely, found.least, found.most)
    )
    return likely if least == most else f"{likely} ({least} to {most})"
