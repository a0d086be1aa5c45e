"""Cross-entropy of the supervised tokens, without ever holding the logits of more than a chunk of them.

Sums are divided by the optimizer batch's token count, not by each part's, so splitting a batch into forward
passes does not change the gradient. (A mean of means is off by tens of per cent when answers differ in
length.) The head is frozen, so the gradient of a chunk is known as soon as its logits are: it is taken at
once and the logits are dropped, which spares making them a second time on the way back. The idea is that of
Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024), in plain PyTorch.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional

from qlora_engine.data.collate import IGNORED


@dataclass(frozen=True)
class Loss:
    """Of one forward pass, over its supervised tokens in their order."""

    total: torch.Tensor
    """The sum in nats; it has the gradient."""
    tokens: torch.Tensor
    """Each token's share in nats, float32, [supervised]."""
    right: torch.Tensor
    """Whether the likeliest token was the right one, [supervised]."""


def predicting(labels: torch.Tensor) -> torch.Tensor:
    """True at the places whose logits predict a supervised token: the one before each label."""
    return functional.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)


def supervised(labels: torch.Tensor) -> torch.Tensor:
    """The labels themselves, where there are some, in their order."""
    shifted = labels[:, 1:]
    return shifted[shifted != IGNORED]


def chunked_loss(hidden: torch.Tensor, head: Any, targets: torch.Tensor, chunk: int) -> Loss:
    """Cross-entropy of `head(hidden)`, [supervised, width], against `targets`, [supervised].

    Raises:
        ValueError: the head is trained; its gradient is not made here.
    """
    if head.weight.requires_grad:
        raise ValueError("the output head is trained, but its gradient is not computed here; freeze it")
    total, tokens, right = _Chunked.apply(hidden, head.weight, head.bias, targets, chunk)  # type: ignore[no-untyped-call]
    return Loss(total, tokens, right)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        tokens = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        right = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = functional.linear(hidden[part].to(weight.dtype), weight, bias).float()
            target = targets[part, None]
            highest, likeliest = logits.max(dim=1, keepdim=True)
            right[part] = (likeliest == target).squeeze(1)
            wanted_logit = logits.gather(1, target)
            # From here on in place: of all that a training holds at its peak, logits may be the most.
            softmax = logits.sub_(highest).exp_()
            weighed = softmax.sum(dim=1, keepdim=True)
            tokens[part] = (weighed.log() + highest - wanted_logit).squeeze(1)
            if gradient is not None:
                softmax.div_(weighed).scatter_add_(1, target, torch.full_like(highest, -1))
                gradient[part] = (softmax.to(weight.dtype) @ weight).to(gradient.dtype)
            del logits, softmax  # before those of the next chunk are made
        ctx.gradient = gradient
        ctx.mark_non_differentiable(tokens, right)
        return tokens.sum(), tokens, right

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(gradients[0].to(gradient.dtype)), None, None, None, None
