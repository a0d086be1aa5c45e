"""Where memory does not suffice the same step goes on with less: same gradient, no restart, people are told.

Every fault is a true refusal of the allocator: a hook asks it for a pebibyte when it sees what the test says
is too much.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.engine.oom import (
    ERROR,
    allocate_too_much,
    difference,
    gradient,
    longer_than,
    more_frames_than,
    refusing,
    split_error,
    unlike_zero,
)
from qlora_engine.adapters.injection import inject
from qlora_engine.adapters.parameter_groups import parameter_groups
from qlora_engine.data.collate import Collator
from qlora_engine.errors import OutOfMemory
from qlora_engine.memory import Exhausted, tried
from qlora_engine.models.loading import load_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import read_manifest, train
from qlora_engine.training.economy import Economy, Failed, next_rung, parts
from qlora_engine.training.forward import Runner
from qlora_engine.training.optimizer_step import RepeatableSteps
from qlora_engine.training.optimizers import make_optimizer
from schemas.training import Hyperparameters, ResumePoint, TrainingSpec
from tests.engine.conftest import MakeSpec, Recorded, frames_of

CPU = torch.device("cpu")


# ---- the decisions ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), min_size=1), st.one_of(st.none(), st.integers(1, 200)))
def test_parts_hold_every_sample_once_and_in_order(lengths: list[int], limit: int | None) -> None:
    found = parts(lengths, limit)
    assert [place for first, end in found for place in range(first, end)] == list(range(len(lengths)))
    for first, end in found:
        assert end - first == 1 or limit is None or sum(lengths[first:end]) <= limit


@given(
    st.sampled_from(["forward", "backward", "optimizer", "evaluation"]),
    st.integers(1, 64),
    st.integers(1, 64),
    st.booleans(),
)
def test_every_ladder_ends_and_only_consent_touches_the_frames(
    site: Any, samples: int, length: int, consent: bool
) -> None:
    economy, taken = Economy(), []
    frames = 8
    while True:
        # The largest part is always what fails.
        largest = max(end - first for first, end in parts([length] * samples, economy.tokens_per_pass))
        at_once = economy.evaluated_at_once or samples
        count = at_once if site == "evaluation" else largest
        failed = Failed(site, count, count * length, count * length, frames // economy.frames_divisor)
        rung = next_rung(economy, failed, fewer_frames=consent)
        if rung is None:
            break
        assert rung.economy != economy
        taken.append(rung.action)
        economy = rung.economy
    assert len(taken) < 40
    assert ("fewer_frames" in taken) == (consent and site in ("forward", "backward"))
    if site in ("forward", "backward"):
        assert taken.index("gradient_checkpointing") == taken.count("split_micro_batch")


ECONOMIES = st.builds(
    Economy,
    tokens_per_pass=st.one_of(st.none(), st.integers(1, 1 << 20)),
    gradient_checkpointing=st.booleans(),
    loss_chunk=st.integers(16, 1 << 16),
    frames_divisor=st.sampled_from([1, 2, 4]),
    evaluated_at_once=st.one_of(st.none(), st.integers(1, 64)),
    optimizer_slice=st.integers(1, 1 << 25),
)


@given(ECONOMIES, ECONOMIES)
def test_what_processes_agree_on_is_no_more_than_any_of_them_can(one: Economy, other: Economy) -> None:
    def agreed(*all_: Economy) -> Economy:
        columns = zip(*(each.thrift for each in all_), strict=True)
        return Economy.of_thrift([max(column) for column in columns])

    assert agreed(one, one) == one
    both = agreed(one, other)
    assert both == agreed(other, one) == agreed(both, one)
    for each in (one, other):
        assert all(mine >= theirs for mine, theirs in zip(both.thrift, each.thrift, strict=True))
    assert (both.tokens_per_pass is None) == (one.tokens_per_pass is None and other.tokens_per_pass is None)


# ---- exact gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen",
    [{"dropout": 0.3}, {"dropout": 0.3, "temporal": True, "gradient_checkpointing": True}, {}],
    ids=["dropout", "temporal", "plain"],
)
def test_a_split_row_has_the_same_gradient_and_the_same_dropout(
    chosen: dict[str, Any], tiny: Path, clips: Path, manifest_file: Path
) -> None:
    loaded = load_model(str(tiny), CPU)
    injected = inject(loaded, Hyperparameters(**chosen))
    unlike_zero(injected)
    injected.model.train()
    collator = Collator(loaded.prompts, frames_of(clips, manifest_file, loaded.vision), loaded.context_tokens)
    rows = list(read_manifest(manifest_file).examples[:5])
    # Parts with a clip, with several, and with none.
    rows[0] = rows[0].model_copy(update={"clip": None})
    rows[4] = rows[4].model_copy(update={"clip": None})
    row = collator.batch(rows)
    runner = Runner(injected.model, loaded)
    whole, after = gradient(injected, runner, row, None)
    for limit in (1, row.tokens // 2):
        split, after_split = gradient(injected, runner, row, limit)
        assert difference(whole, split) < ERROR
        assert torch.equal(after, after_split)
    assert not any("forward" in vars(module) for module in injected.model.modules())


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "qwen3_vl", "llama"])
def test_so_it_is_in_other_families(architecture: str, tmp_path: Path) -> None:
    assert split_error(tmp_path, architecture) < ERROR


# ---- the optimizer ---------------------------------------------------------------------------------------


class FailingAt(TorchDispatchMode):
    """The `count`-th operation on tensors finds no memory."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left == 0:
            allocate_too_much()
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_an_optimizer_step_is_taken_or_not_but_never_by_half(kind: Any, tiny: Path) -> None:
    chosen = Hyperparameters(optimizer=kind, rank=64, lora_plus_ratio=4, target_modalities=("connector",))
    states = []
    for faults in ((1 << 30,) * 4, (1, 4, 6, 9)):
        injected = inject(load_model(str(tiny), CPU), chosen)
        optimizer = make_optimizer(parameter_groups(injected, chosen), chosen, CPU)
        steps = RepeatableSteps(optimizer)
        generator = torch.Generator().manual_seed(1)
        met = []
        for fault in faults:
            for _, parameter in injected.trainable():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            with FailingAt(fault):
                steps.take(lambda: 1 << 16, met.append)
        assert len(met) == sum(fault < 100 for fault in faults)
        assert all(isinstance(found, Exhausted) for found in met)
        states.append(
            {
                f"{name} {key}": torch.as_tensor(value).clone()
                for name, parameter in injected.trainable()
                for key, value in {"": parameter.detach(), **optimizer.state[parameter]}.items()
            }
        )
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_only_a_lack_of_memory_is_one() -> None:
    def wrong() -> None:
        raise RuntimeError("shapes do not match")

    def too_large() -> None:
        raise MemoryError

    assert isinstance(tried(allocate_too_much), Exhausted)
    assert isinstance(tried(too_large), Exhausted)
    assert tried(lambda: 3) == 3
    with pytest.raises(RuntimeError, match="shapes"):
        tried(wrong)


# ---- whole trainings -------------------------------------------------------------------------------------


def adapter(spec: TrainingSpec) -> dict[str, torch.Tensor]:
    return load_file(Path(spec.output_folder, "adapter", "adapter_model.safetensors"))


CHOSEN: dict[str, Any] = {
    "dropout": 0.1,
    "max_steps": 3,
    "checkpoint_every_steps": 2,
    "held_out_fraction": 0.1,
    "max_new_tokens": 4,
    "learning_rate": 1e-3,
}


def test_faults_everywhere_are_recovered_from_without_a_restart(make_spec: MakeSpec, tmp_path: Path) -> None:
    """In forward, backward, optimizer and evaluation; a checkpoint remembers what was done without."""
    calm, shaken, again = Recorded(), Recorded(), Recorded()
    unbroken, faulted = make_spec("unbroken", **CHOSEN), make_spec("faulted", **CHOSEN)
    train(unbroken, calm, StopWish(), CPU)

    held_out = more_frames_than(12, training=False)  # three clips of four frames
    long = longer_than(200)
    with refusing(lambda module, given: long(module, given) or held_out(module, given), longer_than(100), 1):
        train(faulted, shaken, StopWish(), CPU)
    told = [(found.step, found.site, found.action) for found in shaken.of("oom_recovered")]
    assert (0, "evaluation", "smaller_evaluation_batch") in told
    assert (1, "forward", "split_micro_batch") in told
    assert (1, "backward", "split_micro_batch") in told
    assert (1, "optimizer", "smaller_optimizer_slices") in told
    assert all(found[0] <= 1 for found in told)  # it stays
    assert len(shaken.of("training_began")) == 1
    assert difference(adapter(unbroken), adapter(faulted)) < 1e-4
    for one, other in zip(calm.of("step_taken"), shaken.of("step_taken"), strict=True):
        assert other.point.loss == pytest.approx(one.point.loss, rel=1e-5)
        assert other.point.grad_norm == pytest.approx(one.point.grad_norm, rel=1e-4)
        assert other.point.tokens == one.point.tokens

    checkpoint = Path(faulted.output_folder, "checkpoint-2")
    resumed = make_spec("again", ResumePoint(step=2, folder=str(checkpoint)), **CHOSEN)
    train(resumed, again, StopWish(), CPU)
    assert again.of("oom_recovered") == []
    assert all(torch.equal(adapter(faulted)[name], tensor) for name, tensor in adapter(resumed).items())


def test_fewer_frames_only_with_consent(make_spec: MakeSpec) -> None:
    chosen = CHOSEN | {"held_out_fraction": 0, "max_steps": 2, "batch_size": 2}
    asked, consented = Recorded(), Recorded()
    with refusing(more_frames_than(2, training=True)):
        with pytest.raises(OutOfMemory, match="gradient checkpointing is on"):
            train(make_spec("asked", **chosen), asked, StopWish(), CPU)
        train(make_spec("consented", oom_fewer_frames=True, **chosen), consented, StopWish(), CPU)
    actions = [found.action for found in consented.of("oom_recovered")]
    assert actions == ["split_micro_batch", "gradient_checkpointing", "fewer_frames"]
    assert [found.action for found in asked.of("oom_recovered")] == actions[:2]
    assert (consented.of("oom_recovered")[-1].before, consented.of("oom_recovered")[-1].after) == (4, 2)
    assert len(consented.of("step_taken")) == 2
    described = Path(consented.of("training_done")[0].adapter_folder, "kinora_adapter.json")
    assert json.loads(described.read_text("utf-8"))["frames"]["count"] == 2
