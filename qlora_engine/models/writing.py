"""Writes a checkpoint a shard at a time, so that a model larger than the memory can be written."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

from qlora_engine.disk import is_disk_full
from qlora_engine.errors import EngineError
from qlora_engine.models.weights import INDEX_FILE, read_headers
from schemas.training import MergedDtype

SHARD_BYTES = 1 << 30
"""Each is in memory twice while it is written, and travels in one request to stores: 5 GB at most."""
SPARE_BYTES = 64 << 20
"""For everything that is not a weight."""
BESIDE = (".json", ".jinja", ".txt", ".model")
"""Suffixes of what belongs to a checkpoint beside its weights."""
LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
DTYPES = {"F32": torch.float32, "F64": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

TensorOf = Callable[[str], torch.Tensor]
Told = Callable[[int, int], None]
"""Gets how many tensors are written, and of how many."""


class NoRoom(EngineError):
    """The disk has no room for what is to be written."""

    code = "disk_full"


def type_to_store(folder: Path, asked: MergedDtype) -> torch.dtype:
    """By default the one that most numbers of the checkpoint in `folder` are stored in."""
    if asked != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[asked]
    numbers: dict[torch.dtype, int] = {}
    for tensor in read_headers(folder).values():
        if tensor.dtype in DTYPES:
            count = torch.Size(tensor.shape).numel()
            numbers[DTYPES[tensor.dtype]] = numbers.get(DTYPES[tensor.dtype], 0) + count
    return max(numbers, key=lambda dtype: numbers[dtype], default=torch.float32)


def outline(model_class: Any, folder: Path) -> Any:
    """The model that the checkpoint in `folder` describes, without storage; tied weights are one."""
    config = model_class.config_class.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = model_class(config)
    model.tie_weights()
    return model


def tensor_names(model: Any) -> dict[str, torch.Tensor]:
    """What a checkpoint of `model` holds, by the model's own names; tied weights once."""
    once = dict(model.named_parameters())
    kept = model.state_dict()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in kept}
    ignored = model._keys_to_ignore_on_save or ()
    return {name: tensor for name, tensor in (once | buffers).items() if name not in ignored}


def weight_bytes(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> int:
    """Of all of them, floats in `dtype`."""
    return sum(
        tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize
        for tensor in tensors.values()
    )


def check_room(folder: Path, wanted: int) -> None:
    """Refuse to begin what would fill the disk that holds `folder`, which need not exist.

    Raises:
        NoRoom: naming what is needed and what is there.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < wanted + SPARE_BYTES:
        raise NoRoom(
            f"{folder.name} takes {(wanted + SPARE_BYTES) / 2**30:.2f} GiB, and its disk has"
            f" {free / 2**30:.2f} GiB left; free some, or name a folder on another disk"
        )


def write_weights(
    folder: Path,
    model: Any,
    dtype: torch.dtype,
    tensor_of: TensorOf,
    told: Told,
) -> None:
    """Write the tensors of `model`, an `outline`, with floats in `dtype`, as transformers names them.

    Raises:
        NoRoom: the disk is full after all.
    """
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensor_names(model).items()
    }
    shards = split_torch_state_dict_into_shards(tensors, max_shard_size=SHARD_BYTES)
    done, where = 0, dict[str, str]()
    with full_disks_told(folder):
        for file, names in shards.filename_to_tensors.items():
            shard = {}
            for name in names:
                tensor = tensor_of(name)
                shard[name] = tensor.to(
                    "cpu", dtype if tensor.is_floating_point() else tensor.dtype
                ).contiguous()
                done += 1
                told(done, len(tensors))
            renamed = revert_weight_conversion(model, shard)
            save_file(renamed, folder / file, metadata={"format": "pt"})
            where |= dict.fromkeys(renamed, file)
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": where}
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def copy_beside(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Configuration, tokenizer, preprocessor and licence of `source`, for weights in `dtype`.

    Raises:
        NoRoom: the disk is full.
    """
    with full_disks_told(folder):
        for file in sorted(source.iterdir()):
            wanted = file.suffix in BESIDE and not file.name.endswith(".safetensors.index.json")
            if file.is_file() and (wanted or file.name.upper().startswith(LICENCES)):
                shutil.copyfile(file, folder / file.name)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config.pop("torch_dtype", None)  # its old name
        config["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


@contextmanager
def full_disks_told(folder: Path) -> Iterator[None]:
    """
    Raises:
        NoRoom: in place of whatever says that the disk is full.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise NoRoom(f"the disk that {folder.name} is on got full ({error}); free some space") from error
