"""An adapter as a folder: PEFT's two files, marked where stock PEFT would leave out a part of it."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from qlora_engine.adapters.temporal import TemporalLoraConfig, share_shown_clips
from qlora_engine.errors import EngineError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TEMPORAL = "TEMPORAL_LORA"
"""The ``peft_type`` of temporal-aware adapters. PEFT knows no such type and stops; under its own type it
would load the adapter without the temporal part and only warn."""
PLAIN = "LORA"


class AdapterUnusable(EngineError):
    """An adapter's files are no adapter, or do not fit the model."""

    code = "adapter_unusable"


def save_adapter(model: Any, folder: Path) -> None:
    """Write the two files into `folder`, which exists; nothing in them names a folder of ours."""
    save_file(adapter_weights(model), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.save_pretrained(folder)
    described = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    described |= {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "peft_type": TEMPORAL if isinstance(config, TemporalLoraConfig) else PLAIN,
        "target_modules": sorted(described["target_modules"]),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", "utf-8")


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the adapter's tensors in main memory, by the names that they are saved under."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }


def load_adapter(base: Any, folder: Path) -> Any:
    """`base`, a loaded model, with the adapter in `folder`; complete, or not at all. In place.

    Whoever runs a temporal-aware adapter says which clips it is shown: `temporal.showing`.

    Raises:
        AdapterUnusable: a file is missing or damaged, or tensors are missing, left over or of another shape.
    """
    try:
        config = _config(json.loads((folder / CONFIG_FILE).read_text("utf-8")))
        state = load_file(folder / WEIGHTS_FILE)
    except Exception as error:  # a stranger's file: JSON, PEFT and safetensors each have their own errors
        raise AdapterUnusable(f"{folder.name} holds no adapter ({error}); save it again") from error
    model = PeftModel(base, config)
    share_shown_clips(model)
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    strange = sorted(wanted.keys() ^ state.keys()) + sorted(
        name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape
    )
    if strange:
        raise AdapterUnusable(
            f"{folder.name}/{WEIGHTS_FILE} does not fit the model or {CONFIG_FILE}: {strange[0]} and"
            f" {len(strange) - 1} further tensors; use the base model and the files that it was trained with"
        )
    restore_weights(model, state)
    return model.eval()


def restore_weights(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Put saved weights into a model that has the same layers."""
    set_peft_model_state_dict(model, state)


def _config(described: dict[str, Any]) -> LoraConfig:
    kind = described.pop("peft_type")
    if kind not in (TEMPORAL, PLAIN):
        raise ValueError(
            f"{CONFIG_FILE} has peft_type {kind!r}, and this engine loads {PLAIN} and {TEMPORAL}"
        )
    return (TemporalLoraConfig if kind == TEMPORAL else LoraConfig)(**described)
