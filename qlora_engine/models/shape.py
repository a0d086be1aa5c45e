"""Reads a model's sizes off the loaded model, for `schemas.preflight`."""

from collections import Counter
from pathlib import Path
from typing import Any

from qlora_engine.errors import ClipError
from qlora_engine.models.families.base import ClipLayout, Vision
from qlora_engine.models.loading import Loaded
from schemas.adapters import MODALITIES, Modality
from schemas.footprint import LinearShape, ModelShape, PartShape, Sight

FRAMES = 4
"""Of the clips whose layout is asked for; any number that every family merges evenly."""
SMALL, USUAL, LARGE = (64, 64), (640, 360), (7680, 4320)


def model_shape(loaded: Loaded) -> ModelShape:
    """What memory and time of a training depend on."""
    names: dict[Modality, list[str]] = {modality: [] for modality in MODALITIES}
    linears: dict[Modality, Counter[tuple[int, int]]] = {modality: Counter() for modality in MODALITIES}
    quantised = 0
    for name, layer in loaded.linear_layers():
        quantised += layer.in_features * layer.out_features
        if (modality := loaded.family.modality(name)) is not None:
            names[modality].append(name)
            linears[modality][layer.in_features, layer.out_features] += 1
    config = loaded.model.config
    return ModelShape(
        parts=tuple(
            PartShape(
                modality=modality,
                linears=tuple(
                    LinearShape(inputs=inputs, outputs=outputs, count=count)
                    for (inputs, outputs), count in sorted(linears[modality].items())
                ),
                **_block(modality, config, names[modality], loaded.model),
            )
            for modality in MODALITIES
            if linears[modality]
        ),
        dense_parameters=loaded.parameters - quantised,
        vocabulary=int(loaded.model.get_output_embeddings().weight.shape[0]),
        stored_bytes=sum(file.stat().st_size for file in Path(loaded.folder).glob("*.safetensors")),
        sight=None if loaded.vision is None else _sight(loaded.vision),
    )


def _block(modality: Modality, config: Any, names: list[str], model: Any) -> dict[str, Any]:
    if modality == "connector":
        return {}
    if modality == "vision":
        tower = config.vision_config
        width = int(tower.hidden_size)
        return {
            "layers": int(getattr(tower, "depth", None) or tower.num_hidden_layers),
            "width": width,
            "query_width": width,
            "key_width": width,
            "mlp_width": int(tower.intermediate_size),
            "gated": any("gate_proj" in name for name in names),
        }
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    head = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return {
        "layers": int(text.num_hidden_layers),
        "width": int(text.hidden_size),
        "query_width": heads * head,
        "key_width": int(text.num_key_value_heads or heads) * head,
        "mlp_width": int(text.intermediate_size),
        "gated": any("gate_proj" in name for name in names),
        "normed_queries": any(name.endswith("q_norm") for name, _ in model.named_modules()),
    }


def _sight(vision: Vision) -> Sight | None:
    """What the family says of a small, a usual and a huge clip."""
    try:
        small, usual, large = (vision.layout(*size, FRAMES) for size in (SMALL, USUAL, LARGE))
    except ClipError:
        return None
    return Sight(
        frames_per_step=-(-FRAMES // usual.steps),
        patches_per_token=_patches(usual) // usual.step_tokens,
        pixels_per_token=0 if vision.image_size else usual.height * usual.width // usual.step_tokens,
        least_step_tokens=small.step_tokens,
        most_step_tokens=max(large.step_tokens, small.step_tokens),
    )


def _patches(layout: ClipLayout) -> int:
    """Per step."""
    return layout.rows * layout.columns
