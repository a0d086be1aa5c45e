"""Puts LoRA layers beside the quantised layers of the chosen modalities, with stock PEFT."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from peft import LoraConfig, get_peft_model

from qlora_engine.errors import ModelRefused
from qlora_engine.models.loading import Loaded
from schemas.training import Hyperparameters, Modality


@dataclass(frozen=True)
class Injected:
    """A model whose only trainable parameters are LoRA's."""

    model: Any
    trainable_parameters: int

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Names and parameters, in the model's order."""
        return [
            (name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad
        ]


def target_modules(loaded: Loaded, modalities: Sequence[Modality]) -> list[str]:
    """Names of the quantised layers of these modalities, sorted.

    Raises:
        ModelRefused: a modality has none (code ``empty_modality``).
    """
    if set(modalities) == set(get_args(Modality)):  # everything: what the model has of it
        modalities = loaded.family.modalities
    names: dict[Modality, list[str]] = {modality: [] for modality in modalities}
    for name, _ in loaded.linear_layers():
        modality = loaded.family.modality(name)
        if modality in names:
            names[modality].append(name)
    for modality, found in names.items():
        if not found:
            raise ModelRefused(
                f"target_modalities names {modality!r}, but the model has no layer there; leave it out",
                code="empty_modality",
            )
    return sorted(name for found in names.values() for name in found)


def inject(loaded: Loaded, hyperparameters: Hyperparameters) -> Injected:
    """Add LoRA to `loaded.model`, in place; the seed decides A, and B is zero: nothing changes yet."""
    torch.manual_seed(hyperparameters.seed)
    config = LoraConfig(
        r=hyperparameters.rank,
        lora_alpha=hyperparameters.alpha,
        lora_dropout=hyperparameters.dropout,
        target_modules=target_modules(loaded, hyperparameters.target_modalities),
        bias="none",
    )
    if hyperparameters.gradient_checkpointing:
        loaded.model.activation_checkpointing_enable({"use_reentrant": False})
    model = get_peft_model(loaded.model, config)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Injected(model, trainable)
