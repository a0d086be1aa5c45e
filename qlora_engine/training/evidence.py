"""What was there when a number was none: rows and clips of the step, their losses, and the norms before.

All of it is in a file beside the training's output, and what people need of it in the training's log: the
file stays behind on the node.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_engine.updates import Logged
from schemas.datasets import Example

EVIDENCE_FILE = "non_finite.json"
STEPS_BEFORE = 32
MOST_TOLD = 3
MOST_LOGGED = 64
MOST_TENSORS = 100


@dataclass(frozen=True)
class RowLoss:
    """What one row of the step cost per response token, in nats."""

    file: str
    row: int
    clip: str | None
    loss: float

    @classmethod
    def of(cls, example: Example, loss: float) -> "RowLoss":
        return cls(example.file, example.row, example.clip, loss)

    def __str__(self) -> str:
        return f"{self.file} row {self.row} ({self.clip or 'text'}) {self.loss:.4g}"


def write_evidence(
    folder: Path,
    series: Path,
    what: str,
    value: float,
    step: int,
    rows: Sequence[RowLoss],
    trainable: Sequence[tuple[str, torch.nn.Parameter]],
) -> tuple[Logged, ...]:
    """Write ``non_finite.json`` into `folder`; returns what people should hear of it, the sum of it first.

    Args:
        series: the steps taken before, one JSON object a line.
        rows: of this step, up to the one that broke it.
        trainable: parameters with whatever gradient they have.
    """
    before = [json.loads(line) for line in series.read_text("utf-8").splitlines()[-STEPS_BEFORE:]]
    wrong = [
        name
        for name, parameter in trainable
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    content: dict[str, Any] = {
        "step": step,
        "what": what,
        "value": str(value),
        "rows": [asdict(row) | {"loss": str(row.loss)} for row in rows],
        "tensors_with_non_finite_gradients": wrong[:MOST_TENSORS],
        "steps_before": before,
    }
    (folder / EVIDENCE_FILE).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
    broken = [row for row in rows if not math.isfinite(row.loss)]
    finite = [row for row in rows if math.isfinite(row.loss)]
    worst = [*broken, *sorted(finite, key=lambda row: -row.loss)]
    named = worst[: min(MOST_TOLD, len(broken) or MOST_TOLD)]
    norms = ", ".join(f"{point['grad_norm']:.3g}" for point in before[-MOST_TOLD:]) or "none"
    worst_of = "a loss that is no number" if broken else "the highest losses"
    told = [
        Logged(
            level="error",
            code="non_finite_evidence",
            message=f"Rows of step {step} with {worst_of}:"
            f" {_listed(named, len(broken) or len(rows))}; gradients with values that are no numbers:"
            f" {_listed(wrong[:MOST_TOLD], len(wrong)) or 'none yet'}; gradient norms before: {norms}",
        ),
        Logged(
            level="info",
            code="non_finite_rows",
            message=f"Rows of step {step} and what each cost per response token, the worst first:"
            f" {_listed(worst[:MOST_LOGGED], len(worst))}",
        ),
    ]
    if wrong:
        names = _listed(wrong[:MOST_LOGGED], len(wrong))
        message = f"Gradients of step {step} with values that are no numbers: {names}"
        told.append(Logged(level="info", code="non_finite_tensors", message=message))
    return tuple(told)


def _listed(named: Sequence[object], count: int) -> str:
    """These of so many."""
    more = count - len(named)
    return ", ".join(map(str, named)) + (f" and {more} more" if more > 0 else "")
