"""Model cards, made of an adapter's description alone: what `kinora_adapter.json` holds, for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import ModelCardData

from schemas.training import MERGED_FOLDER, AdapterFacts, MergedFacts

CARD_FILE = "README.md"
FACTS_FILE = "kinora_adapter.json"
ANSWERS_FILE = "held_out_answers.jsonl"
CHOSEN = (
    "learning_rate", "optimizer", "schedule", "warmup_ratio", "batch_size", "epochs", "max_steps", "rank",
    "alpha", "dropout", "lora_variant", "target_modalities", "seed",
)  # fmt: skip
"""Hyperparameters that the card names; the rest is in the facts."""

ADAPTER = """
# {architecture} adapter

{kind} adapter of {ranks} (alpha {alpha}), trained for {facts.steps} steps on a base in
{facts.quantization} (bitsandbytes, {double} double quantisation, {facts.compute_dtype} compute). SHA-256 over
the base's files: `{facts.base_model_sha256}`.

```python
import torch
from transformers import BitsAndBytesConfig, {architecture}
{loader}

quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="{facts.quantization}",
    bnb_4bit_use_double_quant={facts.double_quantization},
    bnb_4bit_compute_dtype=torch.{facts.compute_dtype},
)
base = {architecture}.from_pretrained(
    BASE_FOLDER, dtype=torch.{facts.compute_dtype}, quantization_config=quantization
)
{load}
```
{caution}
`{answers_file}` holds what this adapter answered to the rows that it was not trained on.
`{facts_file}` says how frames and prompts were prepared in training; prepare them in the same way.
On CPUs with AVX512-BF16 set `module.support_avx512bf16_for_cpu = False` on every `bitsandbytes.nn.Linear4bit`
before the first forward pass: the packed weights that bitsandbytes makes there give other answers.
"""
STOCK = {
    "kind": "LoRA",
    "loader": "from peft import PeftModel",
    "load": "model = PeftModel.from_pretrained(base, ADAPTER_FOLDER)",
    "caution": "",
}
TEMPORAL = {
    "kind": "Temporal-aware LoRA",
    "loader": "from temporal_lora import load_temporal_adapter",
    "load": "model, clips = load_temporal_adapter(base, ADAPTER_FOLDER)\nclips[:] = [4]  # frames",
    "caution": """
What a frame gives depends on the frames before and after it, which stock PEFT knows nothing of: it refuses
this adapter (`TEMPORAL_LORA`), and merging is not possible. `temporal_lora.py` is in Kinora's docs/examples;
it needs torch and peft.
""",
}
MERGED = """
# {architecture}, merged

Base (SHA-256 over its files `{facts.base_model_sha256}`), taken out of {facts.quantization}, with an
adapter of {facts.steps} steps merged into it. In float32, logits differ by at most
{merged.difference:.1e} from those of the base with the adapter beside it; as stored, in {merged.dtype}, by
{merged.stored_difference:.1e}.

```python
from transformers import {architecture}

model = {architecture}.from_pretrained(THIS_FOLDER)
```

`{facts_file}` says how the adapter was trained, and how frames and prompts were prepared: prepare them in the
same way.
"""


def adapter_card(description: Mapping[str, Any], architecture: str) -> str:
    """``README.md`` of an adapter."""
    facts = AdapterFacts.model_validate(description["facts"])
    tags = ["lora", "qlora", "kinora", *(["temporal-lora"] if facts.temporal else [])]
    body = ADAPTER.format(
        architecture=architecture,
        facts=facts,
        **_ranks(facts),
        double="with" if facts.double_quantization else "without",
        **(TEMPORAL if facts.temporal else STOCK),
        facts_file=FACTS_FILE,
        answers_file=ANSWERS_FILE,
    )
    if facts.merged is not None:
        body += (
            f"\nThe folder `{MERGED_FOLDER}` has the base with this adapter merged into it, in"
            f" {facts.merged.dtype}.\n"
        )
    return _front(description, "peft", tags) + body + "".join(_training(description))


def merged_card(description: Mapping[str, Any], architecture: str, merged: MergedFacts) -> str:
    """``README.md`` of a merged model, from its adapter's description."""
    facts = AdapterFacts.model_validate(description["facts"])
    body = MERGED.format(architecture=architecture, facts=facts, merged=merged, facts_file=FACTS_FILE)
    return (
        _front(description, "transformers", ["merged-lora", "kinora", facts.family])
        + body
        + "".join(_training(description))
    )


def _front(description: Mapping[str, Any], library: str, tags: list[str]) -> str:
    """What the Hugging Face Hub reads; only what is known."""
    run = description.get("run") or {}
    base, data = run.get("base_model") or {}, run.get("data") or {}
    sees = description["frames"] is not None
    known = ModelCardData(
        library_name=library,
        base_model=base.get("name"),
        license=base.get("license"),
        datasets=None if data.get("id") is None else [data["id"]],
        pipeline_tag="video-text-to-text" if sees else "text-generation",
        tags=tags,
    )
    return f"---\n{known.to_yaml()}\n---\n"


def _ranks(facts: AdapterFacts) -> dict[str, str]:
    if facts.lowest_rank is None:
        return {"ranks": f"rank {facts.rank}", "alpha": f"{facts.alpha:g}"}
    return {
        "ranks": f"ranks {facts.lowest_rank} to {facts.highest_rank}",
        "alpha": f"{facts.alpha:g} for rank {facts.rank}, others by layer",
    }


# ---- how it was trained ----------------------------------------------------------------------------------


def _training(description: Mapping[str, Any]) -> Iterator[str]:
    run = description.get("run")
    if run is None:
        return
    data, code, base = run["data"], run["code"], run["base_model"]
    yield "\n## Training\n\n| | |\n|---|---|\n"
    yield _row("job", run["job_id"])
    yield _row("base model", base["id"] or base["name"])
    yield _row("licence of the base model", base["license"])
    yield _row("dataset", data["id"])
    yield _row("dataset's manifest, SHA-256", f"`{data['manifest_sha256']}`")
    yield _row(
        "examples", f"{data['examples']:,}, {data['held_out_examples']:,} held out; {data['clips']:,} clips"
    )
    yield _row("frames", _frames(description["frames"]))
    yield _row("steps, tokens", f"{run['steps']:,}, {run['tokens']:,}")
    for name in CHOSEN:
        yield _row(name, description["hyperparameters"][name])
    yield _row("Kinora", f"{code['kinora']}" + (f", commit {code['commit']}" if code["commit"] else ""))
    yield _row("environment", ", ".join(f"{name} {value}" for name, value in run["environment"].items()))
    yield _row(
        "warnings", ", ".join(f"{name} × {count}" for name, count in run["warnings"].items()) or "none"
    )
    yield from _evaluation(run["evaluation"])


def _row(name: str, value: Any) -> str:
    if value is None:
        return ""
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"| {name} | {shown} |\n"


def _frames(frames: Mapping[str, Any] | None) -> str | None:
    if frames is None:
        return None
    size = frames["resize"]
    how = f"{frames['count']}" if "count" in frames else f"{frames['frames_per_second']:g} per second"
    fixed = f"{size['width']} × {size['height']}" if isinstance(size["width"], int) else "in its proportions"
    return f"{how} of each clip, {fixed}"


def _evaluation(measured: Mapping[str, Any]) -> Iterator[str]:
    before, after = measured["before"] or {}, measured["after"] or {}
    if after.get("loss") is None:
        return
    yield f"\n## Evaluation on {after['examples']:,} held-out rows\n\n| | before | after |\n|---|---|---|\n"
    for name in ("loss", "token_accuracy", "exact_match"):
        shown = ["–" if each.get(name) is None else f"{each[name]:.4f}" for each in (before, after)]
        yield f"| {name.replace('_', ' ')} | {' | '.join(shown)} |\n"
