"""A job's story in the log, as a table that fits a screen."""

from rich.table import Table

from kinora.cli.output import short
from kinora.client import Json
from schemas.envelope import split_type
from schemas.events.job import JobProgressed

PROGRESSED = JobProgressed.TYPE


def _details(event: Json) -> str:
    payload = event["data"]
    shown = []
    for name in (
        "attempt",
        "total_steps",
        "step",
        "steps",
        "phase",
        "reason",
        "code",
        "content",
    ):
        value = payload.get(name)
        if value not in (None, ""):
            shown.append(f"{name}={value}")
    if payload.get("points"):
        shown.append(f"loss={payload['points'][-1]['loss']:.4f}")
    evaluation = payload.get("evaluation")
    if evaluation and evaluation.get("exact_match") is not None:
        shown.append(f"exact_match={evaluation['exact_match']:.2f}")
    if evaluation and evaluation.get("token_accuracy") is not None:
        shown.append(f"token_accuracy={evaluation['token_accuracy']:.2f}")
    if "objects" in payload:
        shown.append(f"{len(payload['objects'])} files")
    return " ".join(shown)


def audit_table(events: list[Json]) -> Table:
    """Every event of a job in order; runs of progress are one row."""
    table = Table(title="Audit trail", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("position", "UTC", "event", "by", "details"):
        table.add_column(name, no_wrap=name != "details", justify="right" if name == "position" else "left")
    index = 0
    while index < len(events):
        event = events[index]
        run = index
        name, _ = split_type(event["type"])
        while run + 1 < len(events) and name == PROGRESSED and events[run + 1]["type"] == event["type"]:
            run += 1
        last = events[run]
        count = run - index + 1
        table.add_row(
            str(event["position"]) if count == 1 else f"{event['position']}–{last['position']}",
            event["time"][11:19],
            name.removeprefix("kinora.") + (f" × {count}" if count > 1 else ""),
            short(event["actor"]),
            _details(last),
        )
        index = run + 1
    return table
