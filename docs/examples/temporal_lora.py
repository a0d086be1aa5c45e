"""Loads a temporal-aware LoRA adapter with torch and peft alone; copy this file wherever it is needed.

    model, clips = load_temporal_adapter(base, "adapter")
    clips[:] = [4]  # before each forward or generate: the frames of every clip that it is shown
    model.generate(...)

Stock peft refuses such an adapter, whose ``peft_type`` is TEMPORAL_LORA, because it would leave out the part
that looks along time. Between LoRA's A and B, z becomes z + conv(z) + conv'(mean of a frame's z).
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file

OWN = ("temporal_kernel", "temporal_modules")


def load_temporal_adapter(base: Any, folder: str | Path) -> tuple[Any, list[int]]:
    """`base`, a loaded model, with the adapter; and the list of frames per clip, which is yours to fill.

    All clips of one call have as many rows a frame; for towers that merge frames, count what is left.
    """
    described = json.loads((Path(folder) / "adapter_config.json").read_text("utf-8"))
    weights = load_file(Path(folder) / "adapter_model.safetensors")
    kernels = {name: tensor for name, tensor in weights.items() if ".lora_temporal." in name}
    plain = {name: tensor for name, tensor in weights.items() if name not in kernels}
    config = {name: value for name, value in described.items() if name not in OWN} | {"peft_type": "LORA"}
    model = PeftModel(base, LoraConfig(**config)).eval()
    set_peft_model_state_dict(model, plain)
    clips: list[int] = []
    for name, kernel in kernels.items():
        layer = model.get_submodule(name.removesuffix(".lora_temporal.weight"))
        layer.lora_A["default"].register_forward_hook(_along_time(kernel.to(base.device), clips))
    return model, clips


def _along_time(kernel: torch.Tensor, clips: list[int]) -> Any:
    """A hook that mixes into LoRA's bottleneck what comes before and after; `kernel` is [2, rank, frames]."""

    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        rows = output.reshape(-1, output.shape[-1])
        each, left = divmod(len(rows), max(1, sum(clips)))
        if not clips or left:
            raise ValueError(
                f"clips is {clips}, but a layer got {len(rows)} rows; set the frames of each clip"
            )
        ends = [0]
        for frames in clips:
            ends.append(ends[-1] + frames * each)
        mixed = [_mixed(rows[start:end].view(-1, each, rows.shape[1])) for start, end in pairwise(ends)]
        return torch.cat(mixed).view(output.shape)

    def _mixed(clip: torch.Tensor) -> torch.Tensor:  # [frames, rows, rank]
        result = clip
        for weight, seen in ((kernel[0], clip), (kernel[1], clip.mean(dim=1, keepdim=True))):
            half = weight.shape[1] // 2
            padded = torch.nn.functional.pad(seen, (0, 0, 0, 0, half, half))
            for offset in range(weight.shape[1]):
                result = result + padded[offset : offset + len(clip)] * weight[:, offset].to(clip.dtype)
        return result.reshape(-1, clip.shape[-1])

    return hook
