"""What a training remembers beside its weights: the best adapter so far, and what each example last cost.

Both are tensors that a checkpoint holds, so that a resumed training ends like the unbroken one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from qlora_engine.adapters.injection import Injected
from qlora_engine.adapters.ranks.resize import ADAPTER, PREFIX, Resizing, adapted_layers
from qlora_engine.updates import Logged
from schemas.datasets import Example

BEST = "best/"
LOSSES = "example_losses"
OUTLIERS_FILE = "loss_outliers.jsonl"
FEWEST_EXAMPLES = 20
"""Below that nothing is unusual."""
SPREADS = 10
"""Median absolute deviations above the median from which a loss is an outlier."""
MARGIN = 1.0
"""… if it is also so many nats above the median: where all are alike, small differences say nothing."""
MOST_TOLD = 3


@dataclass
class Keepsakes:
    """Tensors by name; `Checkpoints` writes and restores them as they are."""

    examples: int
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def saw(self, sample: int, loss: float) -> None:
        """A training example cost this much per response token."""
        losses = self.tensors.setdefault(LOSSES, torch.full((self.examples,), torch.nan))
        losses[sample] = loss

    def keep_best(self, injected: Injected) -> None:
        """The adapter as it is now."""
        for name, parameter in injected.trainable():
            self.tensors[BEST + name] = parameter.detach().cpu().clone()

    def give_best(self, injected: Injected, resizing: Resizing) -> None:
        """Put the adapter back to where it was best, with the ranks it had there."""
        resizing.shape(
            {
                layer: len(self.tensors[f"{BEST}{PREFIX}{layer}.lora_A.{ADAPTER}.weight"])
                for layer in adapted_layers(injected.model)
            }
        )
        with torch.no_grad():
            for name, parameter in injected.trainable():
                parameter.copy_(self.tensors[BEST + name])

    def outliers(self) -> list[int]:
        """Examples that cost far more than the others, the worst first."""
        losses = self.tensors.get(LOSSES, torch.empty(0))
        seen = (~losses.isnan()).nonzero().flatten()
        if len(seen) < FEWEST_EXAMPLES:
            return []
        known = losses[seen]
        median = known.median()
        spread = (known - median).abs().median()
        limit = median + torch.maximum(SPREADS * spread, torch.tensor(MARGIN))
        worst = known.argsort(descending=True)
        return [int(seen[place]) for place in worst if known[place] > limit]

    def write_outliers(self, folder: Path, examples: Sequence[Example]) -> Logged | None:
        """A table of the outliers beside the adapter, and what people should hear of it."""
        found = self.outliers()
        if not found:
            return None
        losses = self.tensors[LOSSES]
        usual = float(losses[~losses.isnan()].median())
        lines = [
            {
                "file": examples[sample].file,
                "row": examples[sample].row,
                "clip": examples[sample].clip,
                "loss": float(losses[sample]),
            }
            for sample in found
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / OUTLIERS_FILE).write_text(text, "utf-8")
        worst = ", ".join(
            f"{examples[sample].where} ({examples[sample].clip or 'text'}) {float(losses[sample]):.2f}"
            for sample in found[:MOST_TOLD]
        )
        return Logged(
            level="warning",
            code="loss_outliers",
            message=f"{len(found)} of {int((~losses.isnan()).sum())} training rows cost far more than the"
            f" median of {usual:.2f} nats per response token: {worst}{' …' if len(found) > MOST_TOLD else ''}"
            f"; look whether clip and response belong together ({OUTLIERS_FILE} names all)",
        )
