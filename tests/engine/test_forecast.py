"""Memory is predicted from sizes: what autograd keeps is what the formula says, in every family."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import pytest
import torch

from qlora_engine.adapters.injection import inject
from qlora_engine.data.batches import Cursor, planned
from qlora_engine.data.collate import Collator
from qlora_engine.data.frames import ClipFrames
from qlora_engine.errors import DoesNotFit
from qlora_engine.models.families.base import Moments
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.quantization import Quantization
from qlora_engine.models.shape import model_shape
from qlora_engine.models.tiny_random import RECIPES, make_random_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import train
from qlora_engine.training.evaluation import undisturbed
from qlora_engine.training.forecast import Forecast, Row, evaluated_at_once, passes, workload
from qlora_engine.training.forward import Runner
from qlora_engine.training.loss import chunked_loss
from schemas.datasets import Example, one_turn
from schemas.footprint import ModelShape, PartShape
from schemas.preflight import LIBRARIES_BYTES, Device, Evaluated, Workload, predict
from schemas.training import Hyperparameters
from tests.engine.conftest import MakeSpec, Recorded

CPU = torch.device("cpu")
FRAMES = 8
NOTHING = Workload(
    tokens=0, supervised=0, patches=0, pixels=0, frame_bytes=0, total_tokens=0, total_patches=0, steps=1
)


class Bounds(NamedTuple):
    """Of a figure."""

    least: float
    most: float

    def __contains__(self, figure: object) -> bool:
        return isinstance(figure, int) and self.least <= figure <= self.most


class Noise:
    """Clips of `FRAMES` random frames."""

    def __init__(self, base: Loaded) -> None:
        self.layout = None if base.vision is None else base.vision.layout(64, 64, FRAMES)

    def of(self, clip: str) -> ClipFrames:
        assert self.layout is not None
        size = (FRAMES, 3, self.layout.height, self.layout.width)
        moments = Moments(tuple(map(float, range(FRAMES))), float(FRAMES))
        return ClipFrames(torch.randint(0, 256, size).to(torch.uint8), moments, self.layout)

    def ahead(self, clips: Iterable[str]) -> None:
        """There is nothing to prepare."""


class Saved:
    """What autograd saved once."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def kept_and_predicted(base: Loaded, chosen: Hyperparameters) -> tuple[int, int]:
    """Bytes that autograd keeps after a pass of `batch_size` samples, and those that were foreseen."""
    model = inject(base, chosen).model
    model.train()
    clip = "noise" if base.vision else None
    examples = [
        Example(clip=clip, messages=one_turn("say it", "a b c " * 60), row=row)
        for row in range(1, chosen.batch_size + 1)
    ]
    noise = Noise(base)
    batch = Collator(base.prompts, noise, base.context_tokens).batch(examples)
    frozen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: WeakSet[Saved] = WeakSet()  # what a graph holds that was let go again does not count

    def keep(tensor: torch.Tensor) -> Saved:
        saved.add(kept := Saved(tensor))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        loss = Runner(model, base).loss(batch).total
    kept = {each.tensor.untyped_storage().data_ptr(): each.tensor for each in saved}
    held = sum(each.untyped_storage().nbytes() for place, each in kept.items() if place not in frozen)
    del loss
    layout = noise.layout
    patches = chosen.batch_size * layout.steps * layout.rows * layout.columns if layout else 0
    work = replace(NOTHING, tokens=batch.ids.numel(), patches=patches)
    given = predict(model_shape(base), work, chosen, Device.of(gpu=False, chosen=chosen))
    return held, next(part.size_bytes for part in given.parts if part.name == "activations")


def close(held: int, *, checkpointing: bool) -> Bounds:
    """What may be foreseen of what was held; a tiny model's tables of positions are not counted."""
    return Bounds(0.9 * held, 1.1 * held) if checkpointing else Bounds(0.955 * held, 1.01 * held)


@pytest.mark.parametrize("architecture", sorted(RECIPES))
@pytest.mark.parametrize(("checkpointing", "samples"), [(False, 1), (False, 3), (True, 1)])
def test_what_is_kept_for_the_way_back_is_foreseen(
    architecture: str, checkpointing: bool, samples: int, tmp_path: Path
) -> None:
    base = load_model(str(make_random_model(tmp_path, architecture)), CPU)
    chosen = Hyperparameters(
        target_modalities=base.family.modalities,
        gradient_checkpointing=checkpointing,
        rank=4,
        batch_size=samples,
    )
    held, predicted = kept_and_predicted(base, chosen)
    assert predicted in close(held, checkpointing=checkpointing)


DORA: dict[str, Any] = {"lora_variant": "dora"}
TEMPORAL: dict[str, Any] = {"temporal": True, "temporal_kernel": 7, "rank": 16}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("architecture", "variant"),
    [
        ("smolvlm", DORA),
        ("qwen2_5_vl", DORA | {"dropout": 0.1}),
        ("qwen3_vl", DORA | {"compute_dtype": "bfloat16"}),
        ("qwen3", DORA | {"batch_size": 3}),
        ("smolvlm", TEMPORAL),
        ("qwen3_vl", TEMPORAL),
        ("qwen2_5_vl", {"dropout": 0.1}),
        ("llama", {"compute_dtype": "bfloat16"}),
        ("qwen2", {"compute_dtype": "bfloat16", "dropout": 0.1, "batch_size": 3}),
    ],
)
def test_what_other_adapters_keep_is_foreseen(
    architecture: str, variant: dict[str, Any], checkpointing: bool, tmp_path: Path
) -> None:
    given = {"rank": 4, "batch_size": 1, "gradient_checkpointing": checkpointing} | variant
    folder = make_random_model(tmp_path, architecture)
    base = load_model(str(folder), CPU, Quantization.chosen(Hyperparameters.model_validate(given)))
    chosen = Hyperparameters.model_validate(given | {"target_modalities": base.family.modalities})
    held, predicted = kept_and_predicted(base, chosen)
    assert predicted in close(held, checkpointing=checkpointing)


def most_allocated(work: Callable[[], object], file: Path) -> int:
    """Bytes that tensors take at most while `work` runs, beside those that were there."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        work()
    seen.export_chrome_trace(str(file))
    events = [each for each in json.loads(file.read_text())["traceEvents"] if each.get("name") == "[memory]"]
    first = min(events, key=lambda event: event["ts"])["args"]
    return int(max(each["args"]["Total Allocated"] for each in events)) - int(
        first["Total Allocated"] - first["Bytes"]
    )


@pytest.mark.parametrize(("dtype", "half"), [(torch.float32, False), (torch.bfloat16, True)])
def test_of_all_logits_those_of_one_chunk_are_held_once(
    dtype: torch.dtype, half: bool, tmp_path: Path
) -> None:
    chunk, width, vocabulary = 256, 16, 8_000
    head = torch.nn.Linear(width, vocabulary, bias=False, dtype=dtype).requires_grad_(False)
    hidden = torch.randn(4 * chunk, width, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocabulary, (4 * chunk,))
    held = most_allocated(lambda: chunked_loss(hidden, head, targets, chunk), tmp_path / "loss.json")
    of_a_chunk = replace(NOTHING, supervised=4 * chunk)
    shape = ModelShape(
        parts=(PartShape(modality="text", linears=(), width=width),),
        dense_parameters=0,
        vocabulary=vocabulary,
    )
    chosen = Hyperparameters(loss_chunk_tokens=chunk)
    given = predict(shape, of_a_chunk, chosen, Device(gpu=False, half=half))
    assert {part.name: part.size_bytes for part in given.parts}["loss"] == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize(
    ("architecture", "prompt", "response"), [("smolvlm", 40, 20), ("qwen3_vl", 40, 20), ("llama", 150, 1)]
)
def test_what_evaluating_takes_is_foreseen(
    architecture: str, prompt: int, response: int, tmp_path: Path
) -> None:
    base = load_model(str(make_random_model(tmp_path, architecture)), CPU)
    chosen = Hyperparameters(target_modalities=base.family.modalities, rank=4, max_new_tokens=24)
    runner, noise = Runner(inject(base, chosen).model, base), Noise(base)
    turns = one_turn("say it " * prompt, "a b c " * response)
    examples = [
        Example(clip="noise" if base.vision else None, messages=turns, row=row) for row in range(1, 5)
    ]
    collator = Collator(base.prompts, noise, base.context_tokens)
    batch, questions, layout = collator.batch(examples), collator.questions(examples), noise.layout
    with undisturbed(runner.model, CPU):
        runner.answers(questions, 1)  # what is made once is not the evaluation's
        held = max(
            most_allocated(partial(runner.loss, batch), tmp_path / "loss.json"),
            most_allocated(partial(runner.answers, questions, 24), tmp_path / "answers.json"),
        )
    seen = Evaluated(
        tokens=batch.tokens,
        supervised=batch.supervised,
        patches=4 * layout.steps * layout.rows * layout.columns if layout else 0,
        pixels=4 * FRAMES * 3 * layout.height * layout.width if layout else 0,
        rows=4,
        prompt=questions.ids.shape[1],
    )
    alone = replace(NOTHING, evaluated=seen)
    given = predict(model_shape(base), alone, chosen, Device(gpu=False, half=False))
    sizes = {part.name: part.size_bytes for part in given.parts}
    predicted = sizes["evaluation beyond that"] + sizes["gradients of a block"]
    assert predicted == pytest.approx(held, rel=0.15)


def test_evaluating_many_rows_at_once_counts_where_it_takes_more_than_a_step() -> None:
    rows = [Row(100, 10), Row(50, 40), Row(60, 5), Row(30, 2)]
    seen = evaluated_at_once(rows, 3)
    assert seen == Evaluated(tokens=210, supervised=55, rows=3, prompt=90)
    assert evaluated_at_once([], 3) == Evaluated()


def test_a_training_that_cannot_fit_is_refused_with_the_sum_and_a_remedy(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    spec = make_spec(max_steps=2).model_copy(update={"memory_bytes": 2**20})
    with pytest.raises(
        DoesNotFit, match=r"needs \d.* GiB = activations .*0\.00 GiB are free here, .*; take a smaller"
    ):
        train(spec, recorded, no_stop, CPU)
    assert recorded.of("training_began") == []


def test_the_sum_is_told_before_the_first_step(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    train(make_spec(max_steps=5), recorded, no_stop, CPU)
    (began,) = recorded.of("training_began")
    told, steps = began.preflight, recorded.of("step_taken")
    assert told.peak_bytes == sum(part.size_bytes for part in told.parts)
    assert told.tokens == sum(step.point.tokens for step in steps)
    assert told.steps == 5
    assert told.seconds > 0
    first, last = recorded.of("calibrated")
    assert (first.step, last.step) == (1, 4)
    assert first.preflight.calibrated
    assert not told.calibrated
    measured = sum(step.point.step_seconds for step in steps[1:4])
    of_all = sum(step.point.tokens for step in steps) / sum(step.point.tokens for step in steps[1:4])
    assert last.preflight.seconds == pytest.approx(measured * of_all, rel=0.2)
    assert last.preflight.watt_hours == pytest.approx(told.watt_hours * last.preflight.seconds / told.seconds)


def test_processes_without_gpus_have_a_share_of_what_the_agent_offers(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    train(make_spec(max_steps=1), recorded, no_stop, CPU)
    expected = recorded.of("training_began")[0].preflight
    alone = Forecast(expected, CPU, 1, lambda _: expected, lambda given, _: given)
    offered = LIBRARIES_BYTES + round(expected.peak_bytes * 1.2)
    assert alone.check(offered) is None
    shared = replace(alone, processes=2)
    assert shared.check(2 * offered) is None
    with pytest.raises(DoesNotFit):
        shared.check(2 * offered - expected.peak_bytes)


def test_the_largest_pass_is_found_among_all_steps() -> None:
    rows = [Row(10, 2), Row(30, 3, 5, 7), Row(20, 9)]
    chosen = Hyperparameters(batch_size=2, micro_batch_size=1, max_steps=30)
    plan = planned(chosen, [row.tokens for row in rows])
    work = workload(plan, 30, rows, 0, 1)
    assert (work.tokens, work.supervised, work.patches, work.pixels) == (30, 9, 5, 7)
    assert work.total_tokens == 30 * 2 * 20


def test_what_was_not_looked_at_is_assumed_to_bring_the_largest_together() -> None:
    rows = [Row(tokens, 1) for tokens in range(1, 201)]
    chosen = Hyperparameters(batch_size=2, max_steps=100_000)
    work = workload(planned(chosen, [row.tokens for row in rows]), 100_000, rows, 0, 2)
    assert work.tokens == 200 + 199
    assert work.total_tokens == pytest.approx(100_000 * 201, rel=0.05)


def test_passes_add_up_their_samples() -> None:
    rows: Sequence[Row] = [Row(10, 2), Row(30, 3, 5, 7)]
    chosen = Hyperparameters(batch_size=2, max_steps=1)
    (whole,) = passes(planned(chosen, [10, 30]).at(Cursor()), rows)
    assert whole == Row(40, 5, 5, 7)
