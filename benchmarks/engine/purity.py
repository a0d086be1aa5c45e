"""Whether evaluating, generating and saving leave training as it was: gradients bit-equal before and after.

With the odd widths of real vision towers: 4304 of the larger SigLIP, 3420 of Qwen2.5-VL. On CPUs with
AVX512-BF16, stock bitsandbytes repacks weights in the first evaluation; how many gradients that costs is
measured beside it, where the host can.
"""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn.modules import Linear4bit

from benchmarks.engine.packing import sample
from benchmarks.installation import console, scratch
from benchmarks.report import Result
from qlora_engine.adapters.injection import Injected, inject
from qlora_engine.data.collate import Batch, Questions, packed
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.tiny_random import RECIPES, make_random_model, write_preprocessor
from qlora_engine.training.evaluation import undisturbed
from qlora_engine.training.export import Exporter
from qlora_engine.training.forward import Runner
from schemas.training import Hyperparameters

ODD: dict[str, dict[str, int]] = {
    "smolvlm": {
        "hidden_size": 1152,
        "num_attention_heads": 16,
        "intermediate_size": 4304,
        "num_hidden_layers": 1,
    },
    "qwen2_5_vl": {"hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "depth": 1},
}
"""Widths of the vision tower, by architecture."""


REPACKS = bool(has_avx512bf16())  # type: ignore[no-untyped-call]


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark: less than a minute, quick or not."""
    results = [Result("host has AVX512-BF16", float(REPACKS), "yes or no")]
    with scratch() as folder:
        for architecture, widths in ODD.items():
            odd = make_odd(folder / architecture, architecture)
            width = widths["intermediate_size"]
            for dropout in (0.0,) if quick else (0.0, 0.1):
                console.print(f"engine.purity: {architecture}, {width} wide, dropout {dropout}")
                changed, whole = changed_gradients(odd, folder / "adapter", dropout=dropout)
                results.append(
                    Result(
                        f"changed gradients of {whole}, {architecture} {width}, dropout {dropout:g}",
                        changed,
                        "",
                        0,
                    )
                )
        if REPACKS:  # of even widths: stock bitsandbytes refuses to repack odd ones, and evaluation fails
            even = make_random_model(folder / "even", "smolvlm")
            try:
                changed, whole = changed_gradients(even, folder / "adapter", guarded=False)
            except RuntimeError as error:  # of the backward pass
                console.print(f"engine.purity: without the guard, training fails: {error}")
                changed = whole = 1
            results.append(Result(f"changed gradients of {whole} without the guard, smolvlm", changed, ""))
    return results


def make_odd(folder: Path, architecture: str) -> Path:
    """A tiny random checkpoint whose vision tower has real widths."""
    recipe = RECIPES[architecture]
    tokenizer = recipe.tokenizer()
    torch.manual_seed(0)
    small = recipe.model(tokenizer)
    for name, width in ODD[architecture].items():
        setattr(small.config.vision_config, name, width)
    type(small)(small.config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_preprocessor(folder, architecture)
    return folder


def changed_gradients(
    base: Path, adapter: Path, *, dropout: float = 0.0, guarded: bool = True
) -> tuple[int, int]:
    """Trained tensors whose gradient is another (or none) after an evaluation, and all trained tensors."""
    loaded = load_model(str(base), torch.device("cpu"))
    hyperparameters = Hyperparameters(dropout=dropout)
    injected = inject(loaded, hyperparameters)
    torch.manual_seed(5)
    with torch.no_grad():  # B begins at zero, which hides half of the gradients
        for _, parameter in injected.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    if not guarded:
        _stock(injected)
    batch = packed([sample(loaded, 2, words) for words in (2, 5)])
    runner = Runner(injected.model, loaded)
    injected.model.train()
    torch.manual_seed(1)
    before = _gradients(runner, injected, batch)
    torch.manual_seed(1)
    _evaluate(runner, loaded, batch)
    adapter.mkdir(exist_ok=True)
    Exporter(loaded, injected, hyperparameters, "0" * 64).write(adapter, 1)
    after = _gradients(runner, injected, batch)
    assert all(gradient is not None for gradient in before.values())
    changed = sum(
        after[name] is None or not torch.equal(gradient, after[name]) for name, gradient in before.items()
    )
    return changed, len(before)


def _stock(injected: Injected) -> None:
    """As bitsandbytes comes."""
    for module in injected.model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
            module.__dict__.pop("forward", None)


def _gradients(runner: Runner, injected: Injected, batch: Batch) -> dict[str, Any]:
    runner.loss(batch).total.backward()  # type: ignore[no-untyped-call]
    found = {}
    for name, parameter in injected.trainable():
        found[name], parameter.grad = parameter.grad, None
    return found


def _evaluate(runner: Runner, loaded: Loaded, batch: Batch) -> None:
    with undisturbed(runner.model, loaded.device):
        runner.loss(batch)
        clips = (batch.clips[0][:1],)
        start = int((batch.labels[0] >= 0).nonzero()[0])
        question = batch.ids[:, :start]
        runner.answers(Questions(question, torch.ones_like(question), clips), 4)
        torch.rand(10)
