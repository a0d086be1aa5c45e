"""How the frozen base is kept in 4 bits and what it computes in (QLoRA, arXiv:2305.14314)."""

from dataclasses import dataclass
from typing import Self

import torch
from transformers import BitsAndBytesConfig

from qlora_engine.device import compute_dtype
from schemas.adapters import AdapterChoices, ComputeDtype, QuantType


@dataclass(frozen=True)
class Quantization:
    """A base model's 4-bit format; the default is what QLoRA takes."""

    quant_type: QuantType = "nf4"
    double: bool = True
    """Whether the blocks' scales are quantised, too."""
    compute_dtype: ComputeDtype = "auto"

    @classmethod
    def chosen(cls, choices: AdapterChoices) -> Self:
        return cls(choices.quantization, choices.double_quantization, choices.compute_dtype)

    def dtype(self, device: torch.device) -> torch.dtype:
        """What the base computes in on `device`."""
        match self.compute_dtype:
            case "float32":
                return torch.float32
            case "bfloat16":
                return torch.bfloat16
            case "auto":
                return compute_dtype(device)

    def config(self, device: torch.device) -> BitsAndBytesConfig:
        """For ``from_pretrained``."""
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=self.dtype(device),
        )


NF4 = Quantization()
