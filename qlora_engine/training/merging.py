"""Merges an adapter into its base: an ordinary checkpoint that needs neither PEFT nor bitsandbytes.

In memory are the base in 4 bits and one shard of what is written, never two whole models. Before anything is
written, the one weight of every layer has to give the logits of the base with its adapter; and what was
written is loaded as a stranger would, and has to give them too, before it gets its name.
"""

import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from qlora_engine.adapters.files import CONFIG_FILE, load_adapter
from qlora_engine.adapters.merged import as_if_merged, whole_tensor
from qlora_engine.data.collate import Batch, Collator
from qlora_engine.errors import EngineError
from qlora_engine.fingerprints import folder_sha256
from qlora_engine.memory import return_memory_at_once
from qlora_engine.models.attention import attend_by_sample
from qlora_engine.models.loading import Loaded, load_model, read_json
from qlora_engine.models.quantization import Quantization
from qlora_engine.models.validation import PROBE, Noise, tried
from qlora_engine.models.writing import (
    check_room,
    copy_beside,
    full_disks_told,
    outline,
    tensor_names,
    type_to_store,
    weight_bytes,
    write_weights,
)
from qlora_engine.training.card import CARD_FILE, FACTS_FILE, merged_card
from qlora_engine.training.forward import Runner
from schemas.training import AdapterFacts, MergedDtype, MergedFacts

PARITY = 1e-4
"""Most that a logit may differ by, in float32."""
ROUNDING = 0.1
"""Most that a logit may differ by where weights are rounded to 16 bits, or read on another device: as a share
of the largest logit. Weights under a wrong name are off by more than that itself."""
UPLOADED = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Suffixes of a checkpoint's files that jobs get to see."""
PHASES = ("loading", "comparing", "writing", "reading back")
Told = Callable[[str, int, int], None]
"""Gets the phase, one of `PHASES`, and how far it got, of how much."""


class MergeRefused(EngineError):
    """An adapter cannot be merged, or the merged model gives other numbers."""

    code = "merge_refused"


def merge(
    base_folder: Path,
    adapter_folder: Path,
    output: Path,
    *,
    dtype: MergedDtype = "auto",
    device: torch.device | None = None,
    base_sha256: str | None = None,
    told: Told = lambda _phase, _done, _total: None,
) -> MergedFacts:
    """Write the merged checkpoint into `output`, which is there whole or not at all.

    `base_sha256` is that of `base_folder`, where it is known.

    Raises:
        MergeRefused: the adapter belongs to another base, the numbers differ by more than `PARITY`, or
            `output` is there already.
        TemporalMergeRefused: the adapter looks at other frames.
        AdapterUnusable, ModelRefused: the files cannot be used.
        NoRoom: the disk has none for it.
    """
    return_memory_at_once()  # large tensors come and go here, one by one
    facts = _facts(adapter_folder)
    _check(facts, base_folder, adapter_folder, output, base_sha256)
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with full_disks_told(output):
            merged = _Merging(facts, base_folder, adapter_folder, part, told).run(
                dtype, device or torch.device("cpu")
            )
            if output.exists():
                output.rmdir()  # `rename` replaces no folder everywhere
            part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return merged


@dataclass(frozen=True)
class _Merging:
    facts: AdapterFacts
    base_folder: Path
    adapter_folder: Path
    part: Path
    """Where it is written until it is known to be right."""
    told: Told

    def run(self, dtype: MergedDtype, device: torch.device) -> MergedFacts:
        facts = self.facts
        self.told("loading", 0, 1)
        base = load_model(
            str(self.base_folder),
            device,
            Quantization(facts.quantization, facts.double_quantization, "float32"),
        )
        kind = type(base.model)
        hollow = outline(kind, self.base_folder)
        stored = type_to_store(self.base_folder, dtype)
        size = weight_bytes(tensor_names(hollow), stored)
        check_room(self.part, size)
        batch = probe_batch(base)
        wanted, difference = self._compared(base, batch)
        self.part.mkdir(parents=True)
        write_weights(
            self.part,
            hollow,
            stored,
            lambda name: whole_tensor(base.model, name),
            lambda done, total: self.told("writing", done, total),
        )
        copy_beside(self.base_folder, self.part, stored)
        base = replace(base, model=None)  # its memory is needed
        gc.collect()
        merged = MergedFacts(
            dtype=_name(stored),
            difference=difference,
            stored_difference=self._read_back(kind, base, batch, wanted, stored),
            size_bytes=size,
        )
        self._describe(merged, kind.__name__)
        return merged

    def _compared(self, base: Loaded, batch: Batch) -> tuple[torch.Tensor, float]:
        """Logits of the base with its adapter, and how far those of the merged weights are from them."""
        self.told("comparing", 0, 1)
        beside = load_adapter(base.model, self.adapter_folder)
        with torch.no_grad():
            wanted = Runner(beside, base).logits(batch)
            with as_if_merged(beside):
                difference = _largest(wanted, Runner(beside, base).logits(batch))
        if not difference <= PARITY:
            raise MergeRefused(
                f"the merged model's logits differ by {difference:.2e} from the adapter's, more than"
                f" {PARITY:g}; keep the adapter beside the base"
            )
        return wanted.cpu(), difference

    def _read_back(
        self, kind: Any, base: Loaded, batch: Batch, wanted: torch.Tensor, stored: torch.dtype
    ) -> float:
        """As anybody would load it, on the CPU, where the files themselves are the model's memory."""
        self.told("reading back", 0, 1)
        cpu = torch.device("cpu")
        whole, report = kind.from_pretrained(
            self.part, dtype=stored, attn_implementation="sdpa", use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
        attend_by_sample(whole.eval())
        with torch.no_grad():
            logits = Runner(whole, replace(base, device=cpu, dtype=stored)).logits(batch).float()
        difference = _largest(wanted, logits)
        exact = stored == torch.float32 and base.device == cpu
        allowed = PARITY if exact else ROUNDING * float(wanted.abs().max())
        if report["missing_keys"] or not difference <= allowed:
            raise MergeRefused(
                f"what was written differs by {difference:.2e} from the adapter's logits, more than"
                f" {allowed:.2e}; keep the adapter beside the base"
                + ("" if stored == torch.float32 else ", or merge into float32")
            )
        return difference

    def _describe(self, merged: MergedFacts, architecture: str) -> None:
        shutil.copyfile(self.adapter_folder / FACTS_FILE, self.part / FACTS_FILE)
        described = json.loads((self.part / FACTS_FILE).read_text("utf-8"))
        (self.part / CARD_FILE).write_text(merged_card(described, architecture, merged), "utf-8")


def _check(
    facts: AdapterFacts, base_folder: Path, adapter_folder: Path, output: Path, base_sha256: str | None
) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise MergeRefused(f"{output.name} is not empty; name a new folder, so that nothing is replaced")
    if not base_folder.is_dir():
        raise MergeRefused(f"{base_folder} is not a folder; give that of the base model's checkpoint")
    found = base_sha256 or folder_sha256(base_folder)
    # What was trained on is what was uploaded: a folder may hold more, such as a model card.
    if found != facts.base_model_sha256 != folder_sha256(base_folder, UPLOADED):
        raise MergeRefused(
            f"{base_folder.name} has the SHA-256 {found}, but the adapter was trained on"
            f" {facts.base_model_sha256}; give the base that it was trained on"
        )
    if facts.compute_dtype != "float32" and _initialised(adapter_folder) == "olora":
        raise MergeRefused(
            f"the adapter has init_lora_weights 'olora' and was trained in {facts.compute_dtype}: the 4-bit"
            " weights that it began from cannot be made again exactly; keep it beside the base, or train with"
            " compute_dtype 'float32'"
        )


def _facts(folder: Path) -> AdapterFacts:
    try:
        return AdapterFacts.model_validate(json.loads((folder / FACTS_FILE).read_text("utf-8"))["facts"])
    except (OSError, ValueError, KeyError, ValidationError) as error:
        raise MergeRefused(
            f"{folder.name}/{FACTS_FILE} does not say what the adapter is ({error}); download it again"
        ) from error


def _initialised(folder: Path) -> Any:
    """How A and B began."""
    return (read_json(folder / CONFIG_FILE) or {}).get("init_lora_weights")


def probe_batch(base: Loaded) -> Batch:
    """A question and its answer, about noise."""
    shown = tried(base)
    example = PROBE if shown is not None else PROBE.model_copy(update={"clip": None})
    return Collator(base.prompts, Noise(shown), base.context_tokens).batch([example])


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
