"""What the demo found out, and how it is shown to people."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kinora.client import Json
from kinora.watch import JobProgress, nats, percent
from schemas.events.job import Evaluation

ANSWERS_FILE = "held_out_answers.jsonl"
DIRECTIONS = frozenset({"left", "right", "up", "down"})
PAIRS_SHOWN = 2
CLIPS_SHOWN = 4
_BAR = 30
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one job came to; everything measured is of held-out clips, and None where it was not measured."""

    job_id: str
    status: str
    steps: int
    trainable_parameters: int | None
    loss_first: float | None
    """Of the first training step, in nats per response token."""
    loss_last: float | None
    held_out_loss_before: float | None
    held_out_loss_after: float | None
    accuracy_before: float | None
    """Share of answers that are right word for word."""
    accuracy_after: float | None
    token_accuracy_before: float | None
    token_accuracy_after: float | None
    direction_before: float | None
    """Share of answers whose direction is right; only where clips come in pairs with their reverse."""
    direction_after: float | None
    adapter_dir: str | None
    events: int


@dataclass(frozen=True, kw_only=True)
class Result(Training):
    """What the demo found out; `report.json` is exactly this."""

    temporal: bool
    ordinary: Training | None
    """The same training with ordinary LoRA, where both are compared."""
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Every training did."""
        return all(each.status == "succeeded" for each in (self, self.ordinary) if each is not None)


def found_out(
    view: Json, progress: JobProgress, adapter: Path | None, events: int, *, in_pairs: bool
) -> Training:
    """Put together what the API, the feed and the adapter's folder tell of a job that ended."""
    answers = read_answers(adapter) if adapter is not None and in_pairs else []
    before, after = progress.before, progress.after
    return Training(
        job_id=view["id"],
        status=view["status"],
        steps=view["step"],
        trainable_parameters=view["trainable_parameters"],
        loss_first=progress.loss_first,
        loss_last=progress.loss,
        held_out_loss_before=_figure(before, "loss"),
        held_out_loss_after=_figure(after, "loss"),
        accuracy_before=_figure(before, "exact_match"),
        accuracy_after=_figure(after, "exact_match"),
        token_accuracy_before=_figure(before, "token_accuracy"),
        token_accuracy_after=_figure(after, "token_accuracy"),
        direction_before=direction_accuracy(answers, "base_answer"),
        direction_after=direction_accuracy(answers, "answer"),
        adapter_dir=None if adapter is None else str(adapter),
        events=events,
    )


def _figure(evaluation: Evaluation | None, name: str) -> float | None:
    figure: float | None = getattr(evaluation, name, None)
    return figure


def read_answers(adapter: Path) -> list[Json]:
    """What was said to every held-out clip, in the order of the data set."""
    return [json.loads(line) for line in (adapter / ANSWERS_FILE).read_text("utf-8").splitlines()]


def direction_accuracy(answers: Sequence[Json], said: str) -> float | None:
    """The share of `answers` whose field `said` ends with the direction that the response ends with.

    None where a response names no direction, or nothing was said.
    """
    wanted, given = ([_last_word(answer[field]) for answer in answers] for field in ("response", said))
    if not answers or None in given or not DIRECTIONS.issuperset(wanted):
        return None
    return sum(1 for told, way in zip(given, wanted, strict=True) if told == way) / len(answers)


def _last_word(text: str | None) -> str | None:
    return None if text is None else text.rpartition(" ")[2]


def show_findings(result: Result, output: Path, console: Console) -> None:
    """The figures before and after, the bars, some answers, and where the files are."""
    columns: dict[str, Training] = {"temporal-aware LoRA" if result.temporal else "LoRA": result}
    if result.ordinary is not None:
        columns = {"ordinary LoRA": result.ordinary, **columns}
    for name, training in columns.items():
        style = "bold green" if training.status == "succeeded" else "bold red"
        console.print(
            f"{name}: [{style}]{training.status}[/] after {training.steps} steps"
            f" and {training.events} events",
            highlight=False,
        )
    console.print()
    console.print(_figures(columns))
    if result.accuracy_after is None:
        console.print("exact match was not measured: fewer than 8 clips are held out", highlight=False)
    if result.ordinary is not None and result.ordinary.direction_after is not None:
        console.print()
        _show_bars(result, result.ordinary, console)
    if result.adapter_dir is not None:
        console.print()
        _show_answers(result, console)
        console.print()
    for name, training in columns.items():
        if training.adapter_dir is not None:
            console.print(f"{name:<20} {training.adapter_dir}", soft_wrap=True, highlight=False)
    if result.adapter_dir is not None:
        console.print(f"{'loss curve':<20} {output / 'loss.png'}", soft_wrap=True, highlight=False)
    console.print(f"{'report':<20} {output / 'report.json'}", soft_wrap=True, highlight=False)


def _figures(columns: Mapping[str, Training]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    rows: dict[str, list[str | None]] = {
        "parameters trained": [
            None if each.trainable_parameters is None else f"{each.trainable_parameters:,}"
            for each in columns.values()
        ],
        "training loss": [_change(each.loss_first, each.loss_last, nats) for each in columns.values()],
        "held-out loss": [
            _change(each.held_out_loss_before, each.held_out_loss_after, nats) for each in columns.values()
        ],
        "token accuracy": [
            _change(each.token_accuracy_before, each.token_accuracy_after) for each in columns.values()
        ],
        "exact match": [_change(each.accuracy_before, each.accuracy_after) for each in columns.values()],
        "direction": [_change(each.direction_before, each.direction_after) for each in columns.values()],
    }
    for name, cells in rows.items():
        if any(cell is not None for cell in cells):
            table.add_row(name, *(cell or "–" for cell in cells))
    return table


def _change(
    before: float | None, after: float | None, told: Callable[[float | None], str] = percent
) -> str | None:
    return None if before is None and after is None else f"{told(before)} → {told(after)}"


def _show_bars(result: Result, ordinary: Training, console: Console) -> None:
    clips = len(read_answers(Path(result.adapter_dir))) if result.adapter_dir else 0
    console.print(
        f"[bold]Which way does it move?[/] {clips} held-out clips, each with its exact reverse",
        highlight=False,
    )
    rows = {
        "base model": result.direction_before,
        "ordinary LoRA": ordinary.direction_after,
        "temporal-aware LoRA": result.direction_after,
    }
    for name, share in rows.items():
        console.print(f"  {name:<20}[cyan]{bar(share or 0.0)}[/] {percent(share):>5}", highlight=False)
    console.print(
        "  [dim]This base cannot know the order of frames: for ordinary LoRA half is the most.[/]",
        highlight=False,
    )


def bar(share: float, width: int = _BAR) -> str:
    """A bar of `width` characters, of which `share` is filled, to an eighth of one."""
    whole, eighths = divmod(round(share * width * 8), 8)
    filled = "█" * whole + (_EIGHTHS[eighths] if eighths else "")
    return filled.ljust(width, "·")


def _show_answers(result: Result, console: Console) -> None:
    tuned = read_answers(Path(result.adapter_dir or ""))
    if result.ordinary is None or result.ordinary.adapter_dir is None:
        for answer in tuned[:CLIPS_SHOWN]:
            console.print(f"  {escape(answer['video'])}: {_judged(answer)}", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("clip", "ordinary LoRA", "temporal-aware LoRA"):
        table.add_column(name)
    plain = read_answers(Path(result.ordinary.adapter_dir))
    for number, (ordinary, temporal) in enumerate(zip(plain, tuned, strict=True)):
        if number == 2 * PAIRS_SHOWN:
            break
        name = "  reversed" if number % 2 else Path(temporal["video"]).stem
        table.add_row(escape(name), _judged(ordinary, told=False), _judged(temporal, told=False))
    console.print(table)


def _judged(answer: Json, *, told: bool = True) -> str:
    mark = "[green]✓[/]" if answer["right"] else "[red]✗[/]"
    expected = f" [dim](expected: {escape(answer['response'])})[/]" if told and not answer["right"] else ""
    return f"{mark} [italic]{escape(answer['answer'])}[/]{expected}"
