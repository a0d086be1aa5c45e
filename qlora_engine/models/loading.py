"""Loads a base model in 4 bits from a Hugging Face checkpoint folder, and refuses what is unsafe or unknown.

Weights are safetensors only and no code of a checkpoint ever runs. Hub ids are looked up unless
HF_HUB_OFFLINE is set, which the engine's process does by default.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from qlora_engine.device import best_device
from qlora_engine.errors import ModelRefused
from qlora_engine.models.attention import attend_by_sample
from qlora_engine.models.families import preprocessor
from qlora_engine.models.families.base import Family, Prompts, Vision
from qlora_engine.models.families.registry import family_for
from qlora_engine.models.quantization import NF4, Quantization
from qlora_engine.models.uneven_widths import make_exact
from qlora_engine.models.weights import check_depth, check_fit, read_headers

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class Loaded:
    """A quantised, frozen base model with everything that belongs to it."""

    model: Any
    tokenizer: Any
    family: Family
    prompts: Prompts
    vision: Vision | None
    """None for a model of text alone."""
    folder: Path
    device: torch.device
    parameters: int
    """Counted before quantisation packs two weights into one byte."""
    dtype: torch.dtype
    """What the base computes in."""

    @property
    def context_tokens(self) -> int:
        return self.family.context_tokens(self.model.config)

    def linear_layers(self) -> Iterator[tuple[str, Any]]:
        """Every quantised layer by name."""
        for name, module in self.model.named_modules():
            if isinstance(module, Linear4bit):
                yield name, module


def checkpoint_folder(source: str) -> Path:
    """`source` itself when it is a folder, else the hub's snapshot of that id.

    Raises:
        ModelRefused: neither exists (code ``model_not_found``).
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(source, allow_patterns=WANTED))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelRefused(
            f"model {source!r} is neither a folder nor a hub id that can be reached from here ({error}); "
            "give a checkpoint folder, or unset HF_HUB_OFFLINE to download",
            code="model_not_found",
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint, after every check that needs no weights.

    Raises:
        ModelRefused: with a code that names the reason.
    """
    config = read_json(folder / "config.json")
    if config is None:
        raise ModelRefused(
            f"{folder.name}/config.json is missing; upload the whole checkpoint folder", code="missing_config"
        )
    described = [("config.json", config)]
    for name in ("tokenizer_config.json", "processor_config.json", *preprocessor.FILES):
        found = read_json(folder / name)
        if found is not None:
            described.append((name, found))
    for name, content in described:
        if (asked := _remote_code(content)) is not None:
            raise ModelRefused(
                f"{name} has auto_map {str(asked)[:120]}, which asks for code of the checkpoint to run; "
                "use a checkpoint that transformers loads without remote code",
                code="remote_code",
            )
    family = family_for(config.get("model_type"))
    if "quantization_config" in config:
        raise ModelRefused(
            "config.json has quantization_config: it is already quantised; use the unquantised weights",
            code="already_quantized",
        )
    tensors = read_headers(folder)
    check_depth(config, tensors)
    check_fit(_expected(family, config["model_type"], folder), tensors)
    return config


def _remote_code(content: Any) -> Any:
    """What ``auto_map`` asks for, wherever it stands."""
    if isinstance(content, dict):
        if "auto_map" in content:
            return content["auto_map"]
        content = list(content.values())
    if not isinstance(content, list):
        return None
    return next((found for part in content if (found := _remote_code(part)) is not None), None)


def _expected(family: Family, model_type: str, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the model that config.json describes, without storage."""
    try:
        model_class = family.model_class(model_type)
        config = model_class.config_class.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            return dict(model_class(config).state_dict())
    except Exception as error:  # whatever a hostile or damaged config provokes in two libraries
        raise ModelRefused(
            f"config.json describes no model that can be built ({_told(error, folder)});"
            " upload the config.json that belongs to the weights",
            code="bad_config",
        ) from error


def read_json(file: Path) -> dict[str, Any] | None:
    """A checkpoint's file of JSON; None when there is none.

    Raises:
        ModelRefused: code ``bad_config``.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelRefused(
            f"{file.name} is not JSON ({error}); upload it again", code="bad_config"
        ) from error
    if not isinstance(content, dict):
        raise ModelRefused(f"{file.name} must hold a JSON object; upload it again", code="bad_config")
    return content


def load_model(
    source: str,
    device: torch.device | None = None,
    quantization: Quantization = NF4,
    family: Family | None = None,
) -> Loaded:
    """The base model in 4 bits, frozen, for evaluation; of the family that config.json names by default.

    Raises:
        ModelRefused: with a code that names the reason.
    """
    device = device or best_device()
    folder = checkpoint_folder(source)
    config = read_config(folder)
    family = family or family_for(config["model_type"])
    disable_progress_bar()
    model = _load_quantized(family.model_class(config["model_type"]), folder, device, quantization)
    tokenizer = load_tokenizer(folder)
    _check_vocabulary(tokenizer, model)
    parameters = _freeze(model, device)
    attend_by_sample(model)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        family=family,
        prompts=family.prompts(model.config, tokenizer),
        vision=family.vision(model.config, folder),
        folder=folder,
        device=device,
        parameters=parameters,
        dtype=quantization.dtype(device),
    )


def _load_quantized(model_class: Any, folder: Path, device: torch.device, quantization: Quantization) -> Any:
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=quantization.dtype(device),
            quantization_config=quantization.config(device),
            device_map={"": device},
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a hostile or damaged checkpoint provokes in three libraries
        raise ModelRefused(
            f"the checkpoint does not load: {_told(error, folder)};"
            " try it with from_pretrained of transformers, and upload what loads there"
        ) from error
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise ModelRefused(
            f"the weights lack {len(missing)} tensors, such as {missing[0]}; upload every *.safetensors file",
            code="missing_weights",
        )
    return model


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        ModelRefused: code ``unusable_tokenizer``.
    """
    if not any((folder / name).is_file() for name in VOCABULARIES):  # some classes then begin an empty one
        raise ModelRefused(
            f"{folder.name} has no tokenizer.json, nor any older vocabulary; upload tokenizer.json and"
            " tokenizer_config.json",
            code="unusable_tokenizer",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # as above
        raise ModelRefused(
            f"the tokenizer does not load ({_told(error, folder)}); upload tokenizer.json and "
            "tokenizer_config.json",
            code="unusable_tokenizer",
        ) from error

    if tokenizer.chat_template is None:  # where processors used to keep theirs
        tokenizer.chat_template = (read_json(folder / "chat_template.json") or {}).get("chat_template")
    return tokenizer


def _check_vocabulary(tokenizer: Any, model: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise ModelRefused(
            f"the tokenizer has the token id {largest}, but the model knows {rows} tokens;"
            " use the tokenizer files of the checkpoint",
            code="unusable_tokenizer",
        )


def _told(error: Exception, folder: Path) -> str:
    """What a library says, without where this node keeps the checkpoint."""
    return f"{type(error).__name__}: {error}".replace(str(folder.parent) + "/", "")


def _freeze(model: Any, device: torch.device) -> int:
    parameters = 0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        shape = parameter.quant_state.shape if getattr(parameter, "quant_state", None) else parameter.shape
        parameters += torch.Size(shape).numel()
        if device.type == "cpu":  # a view into the mapped file keeps all of it in memory
            parameter.data = parameter.data.clone()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # bitsandbytes repacks the weights in place in the first evaluation on CPUs with AVX512-BF16;
            # every later training step then loses gradients silently.
            module.support_avx512bf16_for_cpu = False
            if device.type == "cpu":
                make_exact(module)
    model.config.use_cache = True
    model.eval()
    return parameters
