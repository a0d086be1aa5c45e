"""Memory that does not suffice in forward, backward, optimizer and evaluation: recovered from, how exactly.

Every fault is a true refusal of the allocator: a hook asks it for a pebibyte when it sees what is too much.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.engine.packing import sample
from benchmarks.engine.recovery import make_spec
from benchmarks.installation import console, scratch
from benchmarks.report import Result
from qlora_engine.adapters.injection import Injected, inject
from qlora_engine.data.collate import Batch, packed
from qlora_engine.models.loading import load_model
from qlora_engine.models.tiny_random import RECIPES, make_random_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import train
from qlora_engine.training.forward import Runner
from qlora_engine.training.passes import passes
from qlora_engine.updates import Update
from schemas.training import Hyperparameters, TrainingSpec

CPU = torch.device("cpu")
ERROR = 1e-6
CHANGED: dict[str, Any] = {
    "optimizer": "adamw",
    "rank": 8,
    "rank_allocation": None,
    "dropout": 0.1,
    "tokens_per_micro_batch": None,
    "tokens_per_step": None,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "held_out_fraction": 0.2,
    "max_new_tokens": 4,
}
TooMuch = Callable[[torch.nn.Module, torch.Tensor], bool]


def allocate_too_much() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


@contextmanager
def refusing(
    forward: TooMuch | None = None, backward: TooMuch | None = None, optimizer: int = 0
) -> Iterator[None]:
    """Quantised layers whose input is too much find no memory; nor do the first `optimizer` steps."""
    left = optimizer

    def before(module: torch.nn.Module, inputs: Any) -> None:
        if forward is not None and isinstance(module, Linear4bit) and forward(module, inputs[0]):
            allocate_too_much()

    def after(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if (
            backward is not None
            and isinstance(module, Linear4bit)
            and inputs[0].requires_grad
            and backward(module, inputs[0])
        ):
            inputs[0].register_hook(lambda gradient: allocate_too_much())

    def step(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            allocate_too_much()

    hooks = [
        register_module_forward_pre_hook(before),
        register_module_forward_hook(after),
        register_optimizer_step_pre_hook(step),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def longer_than(tokens: int) -> TooMuch:
    """A row of text with more tokens, in training."""
    return lambda module, given: (
        module.training and given.dim() == 3 and given.shape[0] == 1 and given.shape[1] > tokens
    )


def more_frames_than(frames: int, *, training: bool) -> TooMuch:
    """More frames at once in the vision tower."""
    return lambda module, given: module.training == training and given.dim() == 3 and given.shape[0] > frames


def gradient(
    injected: Injected, runner: Runner, row: Batch, limit: int | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of a row in parts, from the same random numbers; and where those stand afterwards."""
    torch.manual_seed(3)
    family = runner.base.family
    parts = passes(
        injected.model, lambda name: family.modality(name) in ("vision", "connector"), CPU, row, limit
    )
    with closing(parts):
        for part in parts:
            (runner.loss(part.batch).total / row.supervised).backward()  # type: ignore[no-untyped-call]
    found = {
        name: parameter.grad.clone() for name, parameter in injected.trainable() if parameter.grad is not None
    }
    injected.model.zero_grad()
    return found, torch.get_rng_state()


def difference(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """The largest, in units of the largest entry."""
    assert expected.keys() == found.keys()
    scale = max(float(tensor.abs().max()) for tensor in expected.values())
    return max(float((expected[name] - found[name]).abs().max()) for name in expected) / scale


def unlike_zero(injected: Injected) -> None:
    """LoRA's B starts at zero, which hides half of the gradients."""
    torch.manual_seed(5)
    with torch.no_grad():
        for _, parameter in injected.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def split_error(folder: Path, architecture: str, **chosen: Any) -> float:
    """What splitting a row changes in the gradient, dropout included, for a tiny model of this kind."""
    loaded = load_model(str(make_random_model(folder / architecture, architecture)), CPU)
    injected = inject(loaded, Hyperparameters(dropout=0.2, **chosen))
    unlike_zero(injected)
    injected.model.train()
    torch.manual_seed(1)
    row = packed([sample(loaded, frames, words) for frames, words in ((2, 1), (4, 3), (2, 2), (6, 1))])
    runner = Runner(injected.model, loaded)
    whole, after = gradient(injected, runner, row, None)
    split, after_split = gradient(injected, runner, row, max(row.lengths))
    return difference(whole, split) if torch.equal(after, after_split) else float("inf")


def measure(*, quick: bool = False) -> list[Result]:
    """Run the benchmark: about a minute, or less when quick."""
    with scratch() as folder:
        spec = make_spec(folder)
        results = _recoveries(spec, folder)
        architectures = ("smolvlm", "qwen3_vl", "llama") if quick else tuple(RECIPES)
        errors = {each: split_error(folder, each) for each in architectures}
    for architecture, error in errors.items():
        console.print(f"engine.oom: {architecture}: gradient of a split row differs by {error:.2g}")
        results.append(Result(f"gradient error of a split row, {architecture}", error, "", ERROR))
    return results


def _recoveries(spec: Callable[[Path], TrainingSpec], folder: Path) -> list[Result]:
    sites: dict[str, dict[str, Any]] = {
        "forward": {"forward": longer_than(150)},
        "backward": {"backward": longer_than(150)},
        "optimizer": {"optimizer": 1},
        "evaluation": {"forward": more_frames_than(12, training=False)},
    }

    def run(name: str) -> list[Update]:
        asked = spec(folder / name)
        chosen = Hyperparameters(**asked.hyperparameters.model_dump() | CHANGED)
        updates: list[Update] = []
        train(asked.model_copy(update={"hyperparameters": chosen}), updates.append, StopWish(), CPU)
        return updates

    def adapter(name: str) -> dict[str, torch.Tensor]:
        return load_file(folder / name / "adapter" / "adapter_model.safetensors")

    run("unbroken")
    recovered, error = 0, 0.0
    for site, faults in sites.items():
        began = time.perf_counter()
        with refusing(**faults):
            updates = run(site)
        told = [update.action for update in updates if update.kind == "oom_recovered" and update.site == site]
        whole = sum(update.kind == "training_began" for update in updates) == 1
        recovered += bool(told) and whole and updates[-1].kind == "training_done"
        found = difference(adapter("unbroken"), adapter(site))
        error = max(error, found)
        console.print(
            f"engine.oom: {site}: {', '.join(told)}; adapter differs by {found:.2g};"
            f" {time.perf_counter() - began:.1f} s"
        )
    return [
        Result("sites recovered from without a restart", recovered, "of 4", len(sites), at_least=True),
        Result("adapter after 3 steps, largest difference / largest entry", error, ""),
    ]
