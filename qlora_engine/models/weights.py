"""What a checkpoint's weight files hold, by their headers, and whether that fits its config; before loading.

Loading would find some of this, too, but only in part: a quantised layer of another width loads silently.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from qlora_engine.errors import ModelRefused

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MOST_NAMED = 3
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file describes it."""

    file: str
    dtype: str
    """As safetensors names it: ``F32``, ``BF16``, ``I8``."""
    shape: tuple[int, ...]


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by name.

    Raises:
        ModelRefused: codes ``missing_weights``, ``pickle_weights``, ``corrupt_weights``, ``bad_config``.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        tensors.update(_header(file))
    return tensors


def check_depth(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse numbers of layers that no checkpoint of this size has; to build them would take for ever.

    Raises:
        ModelRefused: code ``weights_mismatch``.
    """
    for field, layers in _numbers_of_layers(config):
        if layers > len(tensors):
            raise ModelRefused(
                f"config.json has {field} {layers}, but the weights hold {len(tensors)} tensors altogether;"
                " upload the config.json that belongs to the weights",
                code="weights_mismatch",
            )


def check_fit(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, StoredTensor]) -> None:
    """Compare the tensors that `expected`, a model without storage, has under the same name.

    Raises:
        ModelRefused: code ``weights_mismatch``, or ``already_quantized`` for weights that are no floats.
    """
    shared = [(name, tensor, tensors[name]) for name, tensor in expected.items() if name in tensors]
    coded = [
        f"{name} in {stored.file} is {stored.dtype}"
        for name, tensor, stored in shared
        if tensor.is_floating_point() and stored.dtype not in _FLOATS
    ]
    if coded:
        raise ModelRefused(
            f"{_some(coded)}; use the unquantised weights, in float32, float16 or bfloat16",
            code="already_quantized",
        )
    others = [
        f"{name} is {_spelled(stored.shape)} in {stored.file} and {_spelled(tensor.shape)} by config.json"
        for name, tensor, stored in shared
        if tuple(tensor.shape) != stored.shape
    ]
    if others:
        raise ModelRefused(
            f"{_some(others)}; upload the config.json and the weights of one and the same model",
            code="weights_mismatch",
        )


def _weight_files(folder: Path) -> list[Path]:
    if not any(folder.glob("*.safetensors")):
        raise _without_weights(folder)
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return [folder / name for name in _shards(folder)]
    raise ModelRefused(
        f"{folder.name} has neither {SINGLE_FILE} nor {INDEX_FILE}; upload the checkpoint as"
        " save_pretrained of transformers writes it",
        code="missing_weights",
    )


def _without_weights(folder: Path) -> ModelRefused:
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if pickled:
        return ModelRefused(
            f"the weights {', '.join(pickled[:MOST_NAMED])} are pickles, which can run code when read; "
            "convert them to safetensors (save_pretrained of transformers does)",
            code="pickle_weights",
        )
    return ModelRefused(
        f"{folder.name} has no *.safetensors file; upload the weights beside config.json",
        code="missing_weights",
    )


def _shards(folder: Path) -> list[str]:
    try:
        index = json.loads((folder / INDEX_FILE).read_text("utf-8"))
        named = {str(name) for name in index["weight_map"].values()}
        described = isinstance(index["metadata"], dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        named, described = set(), False
    if not named or not described:
        raise ModelRefused(
            f"{INDEX_FILE} has no weight_map or no metadata; upload it again", code="bad_config"
        )
    # Anything but a plain name would lead out of the folder.
    strange = sorted(name for name in named if Path(name).name != name or not name.endswith(".safetensors"))
    if strange:
        raise ModelRefused(
            f"{INDEX_FILE} names {strange[0][:120]!r}; it may only name *.safetensors files beside it",
            code="bad_config",
        )
    missing = sorted(name for name in named if not (folder / name).is_file())
    if missing:
        raise ModelRefused(
            f"{INDEX_FILE} names {', '.join(missing[:MOST_NAMED])}, which is not there;"
            " upload every *.safetensors file",
            code="missing_weights",
        )
    return sorted(named)


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: StoredTensor(file.name, part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise ModelRefused(
            f"{file.name} ({file.stat().st_size} bytes) is cut off or damaged ({error}); upload it again",
            code="corrupt_weights",
        ) from error


def _numbers_of_layers(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, int]]:
    for field, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers_of_layers(value, f"{place}{field}.")
        elif field == "num_hidden_layers" and isinstance(value, int):
            yield f"{place}{field}", value


def _some(named: list[str]) -> str:
    more = len(named) - MOST_NAMED
    return "; ".join(named[:MOST_NAMED]) + (f"; and {more} more tensors" if more > 0 else "")


def _spelled(shape: tuple[int, ...] | torch.Size) -> str:
    return " × ".join(map(str, shape)) or "one number"
