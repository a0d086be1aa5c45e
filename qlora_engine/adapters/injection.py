"""Puts LoRA layers beside the quantised layers of the chosen modalities, by PEFT's public means."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, get_peft_model

from qlora_engine.adapters.fused import FusedLinear4bit
from qlora_engine.adapters.patterns import resolved
from qlora_engine.adapters.temporal import TemporalLoraConfig, share_shown_clips
from qlora_engine.errors import ModelRefused
from qlora_engine.models.loading import Loaded
from schemas.adapters import MODALITIES, AdapterChoices, Modality
from schemas.training import Hyperparameters


@dataclass(frozen=True)
class Injected:
    """A model whose only trainable parameters are LoRA's."""

    model: Any
    parts: Mapping[str, Modality] = field(default_factory=dict)
    """Of every adapted layer."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """By layer."""

    @property
    def trainable_parameters(self) -> int:
        """Their number now: ranks may change."""
        return sum(parameter.numel() for _, parameter in self.trainable())

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Names and parameters, in the model's order."""
        return [
            (name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad
        ]


def target_modules(loaded: Loaded, modalities: Sequence[Modality]) -> dict[str, Modality]:
    """The quantised layers of these modalities with theirs, sorted by name.

    Raises:
        ModelRefused: a modality has none (code ``empty_modality``).
    """
    if set(modalities) == set(MODALITIES):  # everything: what the model has of it
        modalities = loaded.family.modalities
    found: dict[str, Modality] = {}
    for name, _ in loaded.linear_layers():
        modality = loaded.family.modality(name)
        if modality is not None and modality in modalities:
            found[name] = modality
    for modality in modalities:
        if modality not in found.values():
            raise ModelRefused(
                f"target_modalities names {modality!r}, but the model has no layer there; leave it out",
                code="empty_modality",
            )
    return dict(sorted(found.items()))


def inject(loaded: Loaded, hyperparameters: Hyperparameters, rank: int | None = None) -> Injected:
    """Add LoRA to `loaded.model`, in place; the seed decides A, and B is zero: nothing changes yet.

    With `rank`, every layer begins with this one.

    Raises:
        ModelRefused: a modality or an entry of a pattern meets no layer, or a choice does not fit the model.
    """
    torch.manual_seed(hyperparameters.seed)
    layers = target_modules(loaded, hyperparameters.target_modalities)
    check_widths(loaded, layers, hyperparameters)
    config = lora_config(layers, hyperparameters)
    alphas = {layer: config.alpha_pattern.get(layer, hyperparameters.alpha) for layer in layers}
    if rank is not None:
        config.rank_pattern = dict.fromkeys(layers, rank)
    if hyperparameters.gradient_checkpointing:
        checkpoint_activations(loaded)
    model = get_peft_model(loaded.model, config)
    share_shown_clips(model)
    return Injected(model, layers, alphas)


def checkpoint_activations(loaded: Loaded) -> None:
    """Compute layers again on the way back instead of keeping what they made; no gradient changes."""
    loaded.model.activation_checkpointing_enable({"use_reentrant": False})


def check_widths(loaded: Loaded, layers: Container[str], chosen: AdapterChoices) -> None:
    """DoRA and OLoRA dequantise weights by PEFT, which is wrong on the CPU where `uneven_widths` says so.

    Raises:
        ModelRefused: code ``uneven_width``.
    """
    if loaded.device.type != "cpu" or (chosen.lora_variant == "lora" and chosen.init_lora_weights != "olora"):
        return
    for name, layer in loaded.linear_layers():
        if name in layers and layer.in_features % layer.weight.quant_state.blocksize:
            field, value = (
                ("lora_variant", "dora") if chosen.lora_variant == "dora" else ("init_lora_weights", "olora")
            )
            raise ModelRefused(
                f"{field} is {value!r}, which reads back the weights of {name}, {layer.in_features} wide; on"
                f" the CPU bitsandbytes does that for multiples of {layer.weight.quant_state.blocksize} only:"
                f" leave {field} out, or train on a CUDA device",
                code="uneven_width",
            )


def lora_config(layers: Mapping[str, Modality], chosen: AdapterChoices) -> LoraConfig:
    """What PEFT is asked for: adapters beside `layers`, as chosen.

    Raises:
        ModelRefused: an entry of a pattern meets no layer (code ``empty_pattern``).
    """
    described: dict[str, Any] = {
        "r": chosen.rank,
        "lora_alpha": chosen.alpha,
        "lora_dropout": chosen.dropout,
        "target_modules": list(layers),
        "rank_pattern": resolved("rank_pattern", chosen.rank_pattern, layers),
        "alpha_pattern": resolved("alpha_pattern", chosen.alpha_pattern, layers),
        "use_rslora": chosen.rslora,
        "use_dora": chosen.lora_variant == "dora",
        "init_lora_weights": True if chosen.init_lora_weights == "default" else chosen.init_lora_weights,
        "bias": "none",
    }
    if not chosen.temporal:
        config = LoraConfig(**described)
        config._register_custom_module({Linear4bit: FusedLinear4bit})
        return config
    seeing = [layer for layer, modality in layers.items() if modality != "text"]
    if not seeing:
        raise ModelRefused(
            "temporal is true, but the model is one of text alone; leave temporal out", code="empty_modality"
        )
    return TemporalLoraConfig(**described, temporal_kernel=chosen.temporal_kernel, temporal_modules=seeing)
