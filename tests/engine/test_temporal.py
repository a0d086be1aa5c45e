"""Temporal-aware LoRA does the arithmetic it says, clip by clip; nobody runs, merges or loads it in part."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file

from benchmarks.engine.packing import sample
from qlora_engine.adapters.files import WEIGHTS_FILE, AdapterUnusable, load_adapter, save_adapter
from qlora_engine.adapters.injection import Injected, inject
from qlora_engine.adapters.temporal import (
    ClipLayoutMismatch,
    Kernels,
    TemporalMergeRefused,
    showing,
    temporal_parameters,
)
from qlora_engine.data.collate import Batch, Collator, packed, padded
from qlora_engine.data.frames import Frames
from qlora_engine.data.sampling import Sampling
from qlora_engine.device import one_thread
from qlora_engine.errors import ModelRefused
from qlora_engine.models.families.base import ClipLayout
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.tiny_random import make_random_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import read_manifest, train
from qlora_engine.training.export import ANSWERS_FILE
from qlora_engine.training.forward import Runner
from schemas.datasets import Example, one_turn
from schemas.training import Hyperparameters, ResumePoint
from tests.engine.conftest import MakeSpec, Recorded

CPU = torch.device("cpu")
SEEING = ("smolvlm", "qwen2_5_vl", "qwen3_vl")
TEMPORAL = Hyperparameters(temporal=True)
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def with_weights(injected: Injected, *, kernels: bool = True) -> Injected:
    """No tensor zero, as after some training; the kernels only where asked for."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in injected.trainable():
            if kernels or ".lora_temporal." not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return injected


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def loaded(tiny: Path) -> Loaded:
    return load_model(str(tiny), CPU)


@pytest.fixture(scope="module")
def examples(manifest_file: Path) -> tuple[Example, ...]:
    return read_manifest(manifest_file).examples[:3]


def collator_of(loaded: Loaded, clips: Path, manifest_file: Path, frames: int = 4) -> Collator:
    listed = read_manifest(manifest_file).clips
    given = Frames(clips, listed, Sampling(frames=frames), loaded.vision)
    return Collator(loaded.prompts, given, loaded.context_tokens)


@pytest.fixture
def batch(loaded: Loaded, clips: Path, manifest_file: Path, examples: tuple[Example, ...]) -> Batch:
    return collator_of(loaded, clips, manifest_file).batch(examples)


def loss_of(injected: Injected, loaded: Loaded, batch: Batch) -> torch.Tensor:
    return Runner(injected.model, loaded).loss(batch).total


def conv(clip: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """torch's own convolution along the first dimension of [steps, rows, rank]."""
    return functional.conv1d(
        clip.permute(1, 2, 0), kernel[:, None], padding=kernel.shape[1] // 2, groups=len(kernel)
    ).permute(2, 0, 1)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=5),
    st.sampled_from((3, 5, 7)),
    st.integers(1, 4),
)
def test_each_clip_is_convolved_alone(shapes: list[tuple[int, int]], width: int, rank: int) -> None:
    kernels = Kernels(rank, width)
    torch.nn.init.normal_(kernels.weight)
    clips = [torch.randn(steps, rows, rank) for steps, rows in shapes]
    with torch.no_grad():
        mixed = kernels(torch.cat([clip.flatten(0, 1) for clip in clips]), shapes)
        local, glob = kernels.weight
        alone = [clip + conv(clip, local) + conv(clip.mean(dim=1, keepdim=True), glob) for clip in clips]
    assert torch.allclose(mixed, torch.cat([clip.flatten(0, 1) for clip in alone]), atol=1e-5)


def test_before_the_first_step_it_is_exactly_lora(tiny: Path, batch: Batch, loaded: Loaded) -> None:
    other = load_model(str(tiny), CPU)
    plain = with_weights(inject(other, Hyperparameters()))
    temporal = with_weights(inject(loaded, TEMPORAL), kernels=False)
    assert torch.equal(loss_of(plain, other, batch), loss_of(temporal, loaded, batch))
    more = temporal.trainable_parameters - plain.trainable_parameters
    assert more == 2 * 8 * 3 * 13 == sum(kernel.numel() for _, kernel in temporal_parameters(temporal.model))
    assert more <= 0.02 * plain.trainable_parameters
    assert not any("text_model" in name for name, _ in temporal_parameters(temporal.model))


def test_packed_rows_and_samples_without_a_clip_change_nothing(
    loaded: Loaded, clips: Path, manifest_file: Path, examples: tuple[Example, ...]
) -> None:
    injected = with_weights(inject(loaded, TEMPORAL))
    short, long = (collator_of(loaded, clips, manifest_file, frames) for frames in (3, 5))
    said = Example(messages=one_turn("Who is there?", "nobody"), row=9)
    samples = [
        long.sample(examples[0]), short.sample(examples[1]), long.sample(said), long.sample(examples[2]),
    ]  # fmt: skip
    pad = loaded.prompts.pad_token_id
    with torch.no_grad():
        alone = [float(loss_of(injected, loaded, padded([sample], pad))) for sample in samples]
        together = float(loss_of(injected, loaded, padded(samples, pad)))
        in_rows = float(loss_of(injected, loaded, packed(samples)))
    assert together == pytest.approx(sum(alone), abs=1e-4)
    assert in_rows == pytest.approx(sum(alone), abs=1e-4)


def test_checkpointed_layers_see_the_same_clips_again(tiny: Path, batch: Batch) -> None:
    found = []
    for checkpointing in (False, True):
        loaded = load_model(str(tiny), CPU)
        chosen = Hyperparameters(temporal=True, gradient_checkpointing=checkpointing)
        injected = with_weights(inject(loaded, chosen))
        injected.model.train()
        loss_of(injected, loaded, batch).backward()  # type: ignore[no-untyped-call]
        found.append([kernel.grad for _, kernel in temporal_parameters(injected.model)])
    for plain, again in zip(*found, strict=True):
        assert plain is not None
        assert bool(plain.any())
        assert torch.equal(plain, again)


def test_other_clips_than_those_named_are_refused(loaded: Loaded, batch: Batch) -> None:
    model = with_weights(inject(loaded, TEMPORAL)).model
    pixels = torch.randn(2, 4, 3, 32, 32)
    four = ClipLayout(4, 32, 32, 4, 4, 4, 1)
    three = ClipLayout(3, 32, 32, 3, 4, 4, 1)

    def see(clips: Sequence[ClipLayout]) -> Any:
        with torch.no_grad(), showing(model, clips):
            return model.model.model.get_image_features(pixels).pooler_output

    see([four, four])
    with pytest.raises(ClipLayoutMismatch, match="outside of `showing`"), torch.no_grad():
        model.model.model.get_image_features(pixels)
    for wrong in ([four, three], [four], [four] * 3, []):
        with pytest.raises(ClipLayoutMismatch, match=f"those of the {len(wrong)} clips"):
            see(wrong)


def test_it_is_merged_only_while_its_temporal_part_is_zero(
    tiny: Path, loaded: Loaded, batch: Batch, tmp_path: Path
) -> None:
    injected = with_weights(inject(loaded, TEMPORAL), kernels=False)
    save_adapter(injected.model, tmp_path)
    model = load_adapter(load_model(str(tiny), CPU).model.dequantize(), tmp_path)
    (_, kernel), *_ = temporal_parameters(model)
    with torch.no_grad():
        kernel[0, 0, 0] = 1e-9
    for safe in (True, False):
        with pytest.raises(TemporalMergeRefused, match="keep the adapter beside the base model"):
            model.merge_and_unload(safe_merge=safe)
    with torch.no_grad():
        kernel.zero_()
    merged = Runner(model.merge_and_unload(safe_merge=True), loaded)
    with torch.no_grad():
        assert torch.allclose(merged.loss(batch).total, loss_of(injected, loaded, batch), rtol=1e-5)


def test_nobody_loads_it_without_its_temporal_part(
    tiny: Path, loaded: Loaded, batch: Batch, tmp_path: Path
) -> None:
    injected = with_weights(inject(loaded, TEMPORAL))
    save_adapter(injected.model, tmp_path)
    with pytest.raises(KeyError, match="TEMPORAL_LORA"):
        PeftModel.from_pretrained(load_model(str(tiny), CPU).model, str(tmp_path))

    again = load_model(str(tiny), CPU)
    model = load_adapter(again.model, tmp_path)
    assert torch.equal(Runner(model, again).loss(batch).total, loss_of(injected, loaded, batch))

    weights = load_file(tmp_path / WEIGHTS_FILE)
    dropped = next(name for name in weights if ".lora_temporal." in name)
    save_file({name: tensor for name, tensor in weights.items() if name != dropped}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(AdapterUnusable, match=dropped):
        load_adapter(load_model(str(tiny), CPU).model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "VERA"}), "utf-8")
    with pytest.raises(AdapterUnusable, match="peft_type 'VERA'"):
        load_adapter(load_model(str(tiny), CPU).model, tmp_path)


def test_the_stand_alone_loader_gives_the_same_numbers(
    tiny: Path, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    injected = with_weights(inject(loaded, TEMPORAL))
    save_adapter(injected.model, tmp_path)
    pixels = torch.randn(1, 7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    clips = [ClipLayout(frames, 32, 32, frames, 4, 4, 1) for frames in (4, 3)]
    with torch.no_grad(), showing(injected.model, clips):
        ours = injected.model.model.model.get_image_features(pixels).pooler_output[0]

    monkeypatch.syspath_prepend(str(EXAMPLES))
    from temporal_lora import load_temporal_adapter

    model, frames = load_temporal_adapter(load_model(str(tiny), CPU).model, tmp_path)
    frames[:] = [4, 3]
    with torch.no_grad():
        theirs = model.model.model.get_image_features(pixels).pooler_output[0]
        frames[:] = [4, 4]
        with pytest.raises(ValueError, match=r"clips is \[4, 4\]"):
            model.model.model.get_image_features(pixels)
    del sys.modules["temporal_lora"]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_an_attempt_trains_it_resumes_bit_for_bit_and_says_so(make_spec: MakeSpec, no_stop: StopWish) -> None:
    chosen: dict[str, Any] = {
        "temporal": True, "lora_plus_ratio": 4, "dropout": 0.1, "max_steps": 4, "checkpoint_every_steps": 2,
        "held_out_fraction": 0.05,
    }  # fmt: skip
    whole, rest = Recorded(), Recorded()
    first = make_spec("whole", **chosen)
    train(first, whole, no_stop, CPU)
    resume = ResumePoint(step=2, folder=str(Path(first.output_folder) / "checkpoint-2"))
    train(make_spec("rest", resume, **chosen), rest, no_stop, CPU)
    (done,), (again,) = whole.of("training_done"), rest.of("training_done")
    adapter = Path(done.adapter_folder)
    for name in (WEIGHTS_FILE, "adapter_config.json"):
        assert (adapter / name).read_bytes() == (Path(again.adapter_folder) / name).read_bytes()
    kernels = [tensor for name, tensor in load_file(adapter / WEIGHTS_FILE).items() if "temporal" in name]
    assert len(kernels) == 13
    assert all(bool(kernel.any()) for kernel in kernels)
    assert (done.facts.temporal, done.facts.lora_variant) == (True, "lora")
    assert "load_temporal_adapter" in (adapter / "README.md").read_text("utf-8")
    told, untold = (
        [json.loads(line)["base_answer"] for line in (folder / ANSWERS_FILE).read_text("utf-8").splitlines()]
        for folder in (adapter, Path(again.adapter_folder))
    )
    assert all(told)
    assert set(untold) == {None}


@pytest.mark.parametrize("architecture", SEEING)
def test_every_family_lays_its_clips_out_as_its_layers_see_them(architecture: str, tmp_path: Path) -> None:
    loaded = load_model(str(make_random_model(tmp_path, architecture)), CPU)
    injected = with_weights(inject(loaded, TEMPORAL))
    runner = Runner(injected.model, loaded)
    torch.manual_seed(0)
    samples = [sample(loaded, frames, words) for frames, words in ((4, 1), (2, 9), (6, 3))]
    with torch.no_grad():
        together = runner.logits(packed(samples))[0]
        alone = torch.cat([runner.logits(packed([each]))[0] for each in samples])
        for _, kernel in temporal_parameters(injected.model):
            kernel.zero_()
        without = runner.logits(packed(samples))[0]
    assert float((together - alone).abs().max()) <= 1e-4
    assert float((together - without).abs().max()) > 1e-2


def test_a_model_of_text_alone_has_nothing_to_look_along(tmp_path: Path) -> None:
    loaded = load_model(str(make_random_model(tmp_path, "llama")), CPU)
    with pytest.raises(ModelRefused, match="temporal is true, but the model is one of text alone"):
        inject(loaded, TEMPORAL)
