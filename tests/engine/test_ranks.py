"""Growing changes nothing that is said, credits add up to the loss's fall, trainings resume around both."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file

from benchmarks.engine.oom import more_frames_than, refusing
from qlora_engine.adapters.files import WEIGHTS_FILE, load_adapter, save_adapter
from qlora_engine.adapters.injection import Injected, inject
from qlora_engine.adapters.parameter_groups import parameter_groups
from qlora_engine.adapters.ranks import rounds
from qlora_engine.adapters.ranks.credit import Credits
from qlora_engine.adapters.ranks.moments import grown_state
from qlora_engine.adapters.ranks.resize import Resizing, adapted_layers, rank_cost, ranks_in, ranks_of
from qlora_engine.data.collate import Batch, Collator
from qlora_engine.device import one_thread
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import read_manifest, train
from qlora_engine.training.evaluation import Evaluator
from qlora_engine.training.forward import Runner
from qlora_engine.training.optimizer_step import RepeatableSteps
from qlora_engine.training.optimizers import make_optimizer
from qlora_engine.updates import Alive, OomRecovered, Update
from schemas.training import Hyperparameters, ResumePoint
from tests.engine.conftest import MakeSpec, Recorded, frames_of

CPU = torch.device("cpu")
ALLOCATED: dict[str, Any] = {"rank_allocation": {}, "rank": 4}
CHOICES: list[dict[str, Any]] = [
    {"dropout": 0.3},
    {"rslora": True, "optimizer": "adamw_8bit", "alpha_pattern": {"connector": 3}},
    {"temporal": True, "temporal_kernel": 5, "optimizer": "adamw_8bit"},
    {"lora_variant": "dora", "lora_plus_ratio": 4, "gradient_checkpointing": True},
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def batch(tiny: Path, clips: Path, manifest_file: Path) -> Batch:
    loaded = load_model(str(tiny), CPU)
    collator = Collator(loaded.prompts, frames_of(clips, manifest_file, loaded.vision), loaded.context_tokens)
    return collator.batch(read_manifest(manifest_file).examples[:4])


class Small:
    """A model at its floor rank, a few optimizer steps old."""

    def __init__(self, tiny: Path, batch: Batch, steps: int = 2, **chosen: Any) -> None:
        self.chosen = Hyperparameters(**ALLOCATED | {"learning_rate": 5e-3} | chosen)
        self.loaded: Loaded = load_model(str(tiny), CPU)
        self.injected: Injected = inject(self.loaded, self.chosen, 1)
        self.optimizer = make_optimizer(parameter_groups(self.injected, self.chosen), self.chosen, CPU)
        self.resizing = Resizing(self.injected.model, self.optimizer, self.chosen, self.injected.alphas)
        self.batch = batch
        self.injected.model.train()
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self) -> torch.Tensor:
        return Runner(self.injected.model, self.loaded).loss(self.batch).total / self.batch.supervised

    def says(self) -> torch.Tensor:
        self.injected.model.eval()
        with torch.no_grad():
            logits = Runner(self.injected.model, self.loaded).logits(self.batch)
        self.injected.model.train()
        return logits

    def wanted(self) -> dict[str, int]:
        """From 1 to 6, another one for each layer."""
        return {name: 1 + number % 6 for number, name in enumerate(self.injected.parts)}


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: ",".join(chosen))
def test_growing_keeps_what_the_model_says_and_stock_peft_loads_it(
    chosen: dict[str, Any], tiny: Path, batch: Batch, tmp_path: Path
) -> None:
    small = Small(tiny, batch, **chosen)
    before, ranks = small.says(), small.wanted()
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[2])
    was = small.injected.trainable_parameters
    small.resizing.grow(ranks, step=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[2]) == states[1:]
    assert (small.says() - before).abs().max() <= 1e-5 * before.abs().max()
    assert ranks_of(small.injected.model) == ranks
    layers = adapted_layers(small.injected.model)
    more = sum(rank_cost(layer) * (ranks[name] - 1) for name, layer in layers.items())
    assert small.injected.trainable_parameters == was + more
    held = {id(parameter) for group in small.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for _, parameter in small.injected.trainable()}

    small.step()
    assert all(bool(layer.lora_B["default"].weight.any(dim=0).all()) for layer in layers.values())
    save_adapter(small.injected.model, tmp_path)
    assert ranks_in(load_file(tmp_path / WEIGHTS_FILE)) == ranks
    again = load_model(str(tiny), CPU)
    load = load_adapter if small.chosen.temporal else PeftModel.from_pretrained
    model = load(again.model, tmp_path).eval()  # type: ignore[operator]
    with torch.no_grad():
        assert torch.equal(Runner(model, again).logits(batch), small.says())


def test_ranks_are_never_taken_away(tiny: Path, batch: Batch) -> None:
    small = Small(tiny, batch, steps=0)
    small.resizing.grow(small.wanted(), step=0)
    with pytest.raises(ValueError, match="has rank 6, which cannot become 5"):
        small.resizing.grow({name: min(rank, 5) for name, rank in small.wanted().items()}, step=1)


@pytest.mark.parametrize("bits", ["adamw", "adamw_8bit"])
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.sampled_from((64, 192)), st.integers(1, 90), st.sampled_from((0, 1)))
def test_old_numbers_keep_their_moments_and_new_ones_begin_as_their_neighbours(
    bits: Any, rank: int, width: int, more: int, along: int
) -> None:
    """Small tensors have moments in 32 bits, larger ones in 8; growing may lead from one to the other."""
    torch.manual_seed(rank)
    parameter = torch.nn.Parameter(torch.randn((rank, width) if along == 0 else (width, rank)))
    optimizer = make_optimizer([{"params": [parameter]}], Hyperparameters(optimizer=bits), CPU)
    for _ in range(3):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    state = grown_state(optimizer, parameter, along, more)
    size = list(parameter.shape)
    size[along] += more
    grown = torch.nn.Parameter(torch.zeros(size))
    optimizer.param_groups[0]["params"] = [grown]
    old = optimizer.state.pop(parameter)
    optimizer.state[grown] = state
    for name, tolerance in (("1", 0.02), ("2", 0.08)):
        before, after = moments(old, name, parameter.shape), moments(state, name, grown.shape)
        scale = before.abs().max()
        assert (after.narrow(along, 0, rank) - before).abs().max() <= tolerance * scale
        fresh = after.narrow(along, rank, more)
        expected = before.mean(dim=along, keepdim=True) if name == "2" else torch.zeros(1)
        assert (fresh - expected).abs().max() <= tolerance * scale
    grown.grad = torch.zeros_like(grown)
    optimizer.step()  # the library takes it
    assert bool(grown.isfinite().all())
    new = make_optimizer(
        [{"params": [other := torch.nn.Parameter(torch.zeros(size))]}], Hyperparameters(optimizer=bits), CPU
    )
    other.grad = torch.ones_like(other)
    new.step()
    kept, usual = optimizer.state[grown], new.state[other]
    assert kept.keys() == usual.keys()
    for name, value in usual.items():
        if isinstance(value, torch.Tensor):
            assert (kept[name].shape, kept[name].dtype) == (value.shape, value.dtype)


def moments(state: dict[str, Any], number: str, shape: torch.Size) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_blockwise

    if f"state{number}" not in state:
        return state["exp_avg" if number == "1" else "exp_avg_sq"]  # type: ignore[no-any-return]
    found = state[f"state{number}"]
    if found.dtype == torch.uint8:
        scales, table = state[f"absmax{number}"], state[f"qmap{number}"]
        found = dequantize_blockwise(found, absmax=scales, code=table, blocksize=256)
    return found.view(shape)  # type: ignore[no-any-return]


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: ",".join(chosen))
def test_credits_add_up_to_what_the_loss_falls(chosen: dict[str, Any], tiny: Path, batch: Batch) -> None:
    """In small steps, where a straight line is all there is to see; every trainable number counts once."""
    small = Small(tiny, batch, steps=1, **chosen | {"dropout": 0.0, "learning_rate": 1e-5})
    store: dict[str, torch.Tensor] = {}
    credit, steps = Credits(small.injected.model, store), RepeatableSteps(small.optimizer)
    began = float(small.loss().detach())
    for _ in range(3):
        small.loss().backward()  # type: ignore[no-untyped-call]
        falls: dict[torch.nn.Parameter, float] = {}
        steps.take(lambda: 1 << 12, pytest.fail, falls)
        assert falls.keys() == {parameter for _, parameter in small.injected.trainable()}
        credit.add(falls)
        small.optimizer.zero_grad()
    fell = began - float(small.loss().detach())
    assert fell > 0
    assert sum(credit.of(name) for name in small.injected.parts) == pytest.approx(fell, rel=0.05)
    assert store.keys() == {f"credit/{name}" for name in small.injected.parts}
    credit.forget()
    assert (store, credit.of("a layer that was not watched")) == ({}, 0.0)


TRAINED: dict[str, Any] = {
    "rank": 4, "rank_allocation": {"explore_ratio": 0.3, "rounds": 2, "floor_ratio": 0},
    "temporal": True, "dropout": 0.1,
    "optimizer": "adamw_8bit", "max_steps": 14, "checkpoint_every_steps": 3, "held_out_fraction": 0.05,
}  # fmt: skip


def test_a_training_gives_ranks_out_and_resumes_bit_for_bit_around_it(
    make_spec: MakeSpec, no_stop: StopWish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "loss", lambda *_: 1.0)  # an even trial: what was allocated stays
    whole = Recorded()
    first = make_spec("whole", **TRAINED)
    every: dict[int, Path] = {}

    def keeping(update: Update) -> None:
        whole(update)
        if update.kind == "checkpoint_written":  # only the last two are left in place
            every[update.step] = Path(update.folder).rename(Path(first.output_folder) / f"kept-{update.step}")

    train(first, keeping, no_stop, CPU)
    (began,), (done,) = whole.of("training_began"), whole.of("training_done")
    early, late = whole.of("rank_changed")
    assert (early.step, late.step) == (4, 8)
    assert early.parameters_before == began.trainable_parameters
    assert {layer.before for layer in early.layers} == {1}
    assert early.trial.examples == 1 <= len(whole.of("evaluation_done"))
    assert early.kept == ("allocated" if early.trial.passed else "uniform")
    assert late.trial is None
    assert [layer.after for layer in early.layers] == [layer.before for layer in late.layers]
    uniform = make_spec("uniform", **TRAINED | {"rank_allocation": None, "max_steps": 1})
    recorded = Recorded()
    train(uniform, recorded, no_stop, CPU)
    allowed = recorded.of("training_began")[0].trainable_parameters
    assert 0.98 * allowed <= late.parameters_after == done.facts.trainable_parameters <= allowed
    assert len({layer.after for layer in late.layers}) > 1
    assert [update.point.step for update in whole.of("step_taken")] == list(range(1, 15))
    ranks = {layer.layer: layer.after for layer in late.layers}
    assert (done.facts.lowest_rank, done.facts.highest_rank) == (min(ranks.values()), max(ranks.values()))
    adapter = Path(done.adapter_folder)
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    assert config["rank_pattern"] == ranks
    assert (config["lora_alpha"], config["alpha_pattern"]) == (16.0, {})
    assert f"of ranks {min(ranks.values())} to" in (adapter / "README.md").read_text("utf-8")
    # in the middle of the first measurement, right before both rounds' ends, and after both
    for step in (3, 6, 9):
        spec = make_spec(f"from-{step}", ResumePoint(step=step, folder=str(every[step])), **TRAINED)
        rest = Recorded()
        train(spec, rest, no_stop, CPU)
        (again,) = rest.of("training_done")
        for name in (WEIGHTS_FILE, "adapter_config.json"):
            assert (adapter / name).read_bytes() == (Path(again.adapter_folder) / name).read_bytes(), step
        assert [update.step for update in rest.of("rank_changed")] == [at for at in (4, 8) if at >= step]


@pytest.mark.parametrize("better", ["allocated", "uniform"])
def test_the_gate_keeps_what_costs_less_on_held_out_rows(
    better: str, make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter((2.0, 2.0) if better == "allocated" else (1.5, 2.0))  # uniform first; equal is not worse
    monkeypatch.setattr(Evaluator, "loss", lambda *_: next(losses))
    spec = make_spec(
        rank=4, rank_allocation={"explore_ratio": 0.3}, max_steps=10, held_out_fraction=0.05,
        checkpoint_every_steps=4, evaluate_every_steps=4,
    )  # fmt: skip
    train(spec, recorded, no_stop, CPU)
    (changed,) = recorded.of("rank_changed")
    (done,) = recorded.of("training_done")
    assert (changed.kept, changed.step) == (better, 3)
    after = {layer.after for layer in changed.layers}
    assert (after == {4}) == (better == "uniform")
    steps = [update.point.step for update in recorded.of("step_taken")]
    assert steps == list(range(1, 11))
    assert [update.step for update in recorded.of("checkpoint_written")] == [4, 8]
    assert [update.step for update in recorded.of("evaluation_done")] == [0, 4, 8, 10]
    assert done.facts.trainable_parameters == changed.parameters_after


def test_a_kept_uniform_rank_is_trained_like_one_that_grew_without_a_trial(
    make_spec: MakeSpec, no_stop: StopWish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way not taken leaves nothing behind: neither in weights and moments nor in random states."""
    chosen: dict[str, Any] = {"rank": 2, "max_steps": 8, "held_out_fraction": 0.05, "dropout": 0.2}
    adapters = []
    for output, gate in (("tried", True), ("untried", False)):
        losses = iter((1.0, 2.0))
        monkeypatch.setattr(Evaluator, "loss", lambda *_, losses=losses: next(losses))
        monkeypatch.setattr(
            "qlora_engine.training.rank_phase.allocate",
            lambda layers, *_, gate=gate: {
                name: 3 if gate and number == 0 else 2 for number, name in enumerate(layers)
            },
        )
        recorded = Recorded()
        train(make_spec(output, **chosen, rank_allocation={"gate": gate}), recorded, no_stop, CPU)
        adapters.append(Path(recorded.of("training_done")[0].adapter_folder) / WEIGHTS_FILE)
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_trial_that_meets_no_memory_goes_on_and_compares_like_with_like(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    """Both ways see as many frames, though memory for them is missing only after the first of their steps."""
    trying = False
    held_out, trained = more_frames_than(3, training=False), more_frames_than(2, training=True)

    def watching(update: Update) -> None:
        nonlocal trying
        recorded(update)
        trying = trying or isinstance(update, Alive)

    spec = make_spec(
        rank=4, rank_allocation={"explore_ratio": 0.1}, max_steps=20, batch_size=2, held_out_fraction=0.2,
        checkpoint_every_steps=50, oom_fewer_frames=True,
    )  # fmt: skip
    with (
        pytest.MonkeyPatch.context() as patched,
        refusing(lambda module, given: trying and (held_out(module, given) or trained(module, given))),
    ):
        patched.setattr(rounds, "TRIAL_SHARE", 0.1)
        patched.setattr(rounds, "JUDGED_SHARE", 0.1)
        train(spec, watching, no_stop, CPU)
    (changed,) = recorded.of("rank_changed")
    assert (changed.trial.steps, changed.trial.examples) == (2, 4)
    told = [(found.step, found.site, found.action) for found in recorded.of("oom_recovered")]
    assert (4, "evaluation", "smaller_evaluation_batch") in told
    assert (4, "forward", "fewer_frames") in told
    assert len(recorded.of("step_taken")) == 20
    seen = [update for update in recorded.updates if isinstance(update, (Alive, OomRecovered))]
    rung = next(place for place, update in enumerate(seen) if getattr(update, "action", "") == "fewer_frames")
    assert sum(isinstance(update, Alive) for update in seen[rung:]) == 7, (
        "the rest of the first way, the second, and both again"
    )


def test_a_stop_during_the_trial_goes_back_to_before_it(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    chosen: dict[str, Any] = {
        "rank": 4, "rank_allocation": {"explore_ratio": 0.3}, "max_steps": 10, "held_out_fraction": 0.05,
        "checkpoint_every_steps": 50,
    }  # fmt: skip
    whole = Recorded()
    train(make_spec("whole", **chosen), whole, no_stop, CPU)
    stop = StopWish()

    def stopping(update: Update) -> None:
        recorded(update)
        if isinstance(update, Alive):
            stop.ask("graceful")

    train(make_spec("stopped", **chosen), stopping, stop, CPU)
    (stopped,) = recorded.of("training_stopped")
    assert stopped.step == 3
    assert recorded.of("rank_changed") == []
    (written,) = recorded.of("checkpoint_written")
    rest = Recorded()
    train(make_spec("rest", ResumePoint(step=3, folder=written.folder), **chosen), rest, no_stop, CPU)
    adapters = [Path(run.of("training_done")[0].adapter_folder) / WEIGHTS_FILE for run in (whole, rest)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_the_best_adapter_may_have_the_ranks_of_before(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    """A rate far too high: the first evaluation is the best, and ranks are given out after it."""
    spec = make_spec(
        rank=4, rank_allocation={"explore_ratio": 0.25, "floor_ratio": 0.5, "gate": False}, max_steps=8,
        learning_rate=0.5, evaluate_every_steps=1, early_stopping_patience=2, held_out_fraction=0.05,
    )  # fmt: skip
    train(spec, recorded, no_stop, CPU)
    (done,) = recorded.of("training_done")
    (changed,) = recorded.of("rank_changed")
    measured = {one.step: one.evaluation.loss for one in recorded.of("evaluation_done") if one.step}
    best = min(measured, key=lambda step: (measured[step], step))
    assert best <= changed.step, measured
    assert done.facts.trainable_parameters == changed.parameters_before


@pytest.mark.parametrize(
    ("chosen", "why"), [({"max_steps": 2}, "2 steps are too few"), ({"held_out_fraction": 0.0}, None)]
)
def test_where_it_cannot_be_done_every_layer_has_the_rank(
    chosen: dict[str, Any], why: str | None, make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    wish = {"gate": why is not None}
    train(
        make_spec(rank=4, rank_allocation=wish, **{"held_out_fraction": 0.05} | chosen),
        recorded, no_stop, CPU,
    )  # fmt: skip
    told = [line.message for line in recorded.of("logged") if line.code == "rank_not_allocated"]
    assert bool(told) == (why is not None)
    assert bool(recorded.of("rank_changed")) == (why is None)
    assert all(why is not None and why in message for message in told)
