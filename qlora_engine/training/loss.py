"""The loss: cross-entropy per supervised token of the whole optimizer batch.

Sums are divided by the batch's token count, not by each part's, so splitting a batch into forward passes does
not change the gradient. (A mean of means is off by tens of per cent when answers differ in length.)
"""

import torch
import torch.nn.functional as functional

from qlora_engine.data.collate import IGNORED


def predicting(labels: torch.Tensor) -> torch.Tensor:
    """True at the places whose logits predict a supervised token: the one before each label."""
    return functional.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the supervised tokens; `logits` are those at `predicting(labels)`."""
    shifted = labels[:, 1:]
    return functional.cross_entropy(logits.float(), shifted[shifted != IGNORED], reduction="sum")
