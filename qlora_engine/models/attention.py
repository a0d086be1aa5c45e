"""Exact attention within the samples of a packed row, on PyTorch's own SDPA and nothing else.

The lengths of the samples travel as the model's four-dimensional attention mask, which transformers hands to
every layer as it is. So they can never be lost on the way: where they do not arrive, nothing is computed.
Samples of similar length are laid side by side, padded on the right: being causal, they see nothing of that
padding, and SDPA needs no mask at all, which is its fastest way on every device.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

sdpa: Callable[..., tuple[torch.Tensor, None]] = sdpa_attention_forward
NAME = "sdpa_by_sample"
NEGLIGIBLE = 128 * 128
"""Query-key pairs that cost less than another call."""
WASTE = 0.25
"""Share of the query-key pairs of samples side by side that may be padding."""


def attend_by_sample(model: Any) -> None:
    """Let the text part of `model` take packed rows; anything else it goes on computing with SDPA."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    text = "text_config" in model.config.sub_configs
    model.set_attn_implementation({"text_config": NAME} if text else NAME)


def packed_mask(lengths: Sequence[int]) -> torch.Tensor:
    """The attention mask of one row that holds samples of these lengths. It stays on the CPU."""
    return torch.tensor(lengths, dtype=torch.int64).view(1, 1, 1, -1)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Shapes are [1, heads, tokens, width] in and [1, tokens, heads, width] out."""
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    lengths = tuple(int(length) for length in attention_mask.flatten().tolist())
    if query.shape[0] != 1 or sum(lengths) != query.shape[2] or key.shape[2] != query.shape[2]:
        raise ValueError(f"a row of samples of {lengths} tokens cannot hold queries of {tuple(query.shape)}")
    if len(lengths) == 1:
        return sdpa(module, query, key, value, None, **kwargs)
    plan, back = _layout(lengths, query.device)
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    found = []
    for places, count, width in plan:
        parts = (row[places].view(count, width, *row.shape[1:]).transpose(1, 2) for row in rows)
        output, _ = sdpa(module, *parts, None, **kwargs)
        found.append(output.flatten(0, 1))
    return torch.cat(found)[back][None], None


@lru_cache(maxsize=8)
def _layout(
    lengths: tuple[int, ...], device: torch.device
) -> tuple[list[tuple[torch.Tensor, int, int]], torch.Tensor]:
    """For each call the places of its tokens in the row, samples and width; and each token's place after."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    plan = []
    back = torch.empty(starts[-1], dtype=torch.int64)
    after = 0
    for group in grouped(lengths):
        width = max(lengths[sample] for sample in group)
        places = torch.empty((len(group), width), dtype=torch.int64)
        for number, sample in enumerate(group):
            length, start = lengths[sample], starts[sample]
            # Padding repeats the first token: any will do, because nobody sees it.
            places[number] = start
            places[number, :length] = torch.arange(start, start + length)
            first = after + number * width
            back[start : start + length] = torch.arange(first, first + length)
        after += len(group) * width
        plan.append((places.flatten().to(device), len(group), width))
    return plan, back.to(device)


def grouped(lengths: Sequence[int]) -> list[list[int]]:
    """Samples that are attended in one call, shortest first: few calls, and little padding in each."""
    groups: list[list[int]] = []
    wanted = 0
    for sample in sorted(range(len(lengths)), key=lambda sample: lengths[sample]):
        pairs = lengths[sample] ** 2
        if groups and (len(groups[-1]) + 1) * pairs <= (wanted + pairs) / (1 - WASTE) + NEGLIGIBLE:
            groups[-1].append(sample)
            wanted += pairs
        else:
            groups.append([sample])
            wanted = pairs
    return groups
