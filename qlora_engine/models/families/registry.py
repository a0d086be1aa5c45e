"""Finds the family of a checkpoint by the ``model_type`` of its config."""

from qlora_engine.errors import ModelRefused
from qlora_engine.models.families.base import Family
from qlora_engine.models.families.llama import LLAMA
from qlora_engine.models.families.qwen import QWEN
from qlora_engine.models.families.qwen2_5_vl import Qwen25VL
from qlora_engine.models.families.qwen3_vl import Qwen3VL
from qlora_engine.models.families.smolvlm import SmolVLM

FAMILIES: tuple[Family, ...] = (SmolVLM(), Qwen25VL(), Qwen3VL(), LLAMA, QWEN)


def family_for(model_type: str | None) -> Family:
    """The family that loads this ``model_type``.

    Raises:
        ModelRefused: no family does (code ``unknown_family``).
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise ModelRefused(
        f"config.json has model_type {model_type!r}, which no family here loads; use one of: {known}",
        code="unknown_family",
    )
