"""Every family trains, packs exactly, and makes of clips and words what transformers makes of them."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as resize_of_qwen2_5
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from qlora_engine.adapters.injection import inject
from qlora_engine.data.collate import Collator, Sample, normalised
from qlora_engine.data.frames import ClipFrames, shown_clip
from qlora_engine.errors import ClipShapeRefused, ControlTokenInCaption, ModelRefused
from qlora_engine.models.families import qwen2_5_vl, qwen3_vl, qwen_vl
from qlora_engine.models.families.base import Moments, Said, Shown, Vision, exchange, row_positions
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.tiny_random import RECIPES, make_random_model
from qlora_engine.models.validation import validate_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import read_manifest, train
from qlora_engine.training.forward import Runner
from schemas.datasets import Example, Manifest, Turn, one_turn
from schemas.training import Hyperparameters, ModelValidationSpec
from tests.engine.conftest import MakeSpec, Recorded, frames_of

CPU = torch.device("cpu")
SEEING = ("smolvlm", "qwen2_5_vl", "qwen3_vl")
TALK = (
    Said("system", "Be brief."),
    Said("user", "What moves?"),
    Said("assistant", "A ball."),
    Said("user", "Where to?"),
    Said("assistant", "To the left."),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make_random_model(root / name, name) for name in RECIPES}


@pytest.fixture(scope="module")
def base(folders: dict[str, Path]) -> Any:
    """The loaded model of an architecture; nobody may change it."""
    return cache(lambda name: load_model(str(folders[name]), CPU))


def clip(vision: Vision, width: int, height: int, frames: int, seed: int = 0) -> ClipFrames:
    """Noise, shown at times that are not evenly spaced."""
    layout = vision.layout(width, height, frames)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (frames, 3, layout.height, layout.width), generator=generator)
    seconds = tuple(0.7 * index + 0.1 * (index % 3) for index in range(frames))
    return ClipFrames(pixels.to(torch.uint8), Moments(seconds, 0.8 * frames), layout)


def sample(loaded: Loaded, turns: Sequence[Any], shown: ClipFrames | None) -> Sample:
    view = None if shown is None else shown.shown
    encoded = loaded.prompts.encode(turns, view)
    ids = torch.tensor(encoded.ids)
    labels = ids.masked_fill(~torch.tensor(encoded.supervised), -100)
    return Sample(ids, labels, loaded.prompts.positions(encoded.ids, view), shown)


def samples(loaded: Loaded) -> list[Sample]:
    """Of different lengths and, where the model sees clips, of different shapes; one without a clip."""
    vision = loaded.vision
    if vision is None:
        return [sample(loaded, exchange("Why?" * times, "So." * times), None) for times in (1, 9, 4)]
    return [
        sample(loaded, exchange("What happens?", "a red square moves left"), clip(vision, 64, 48, 4, 1)),
        sample(loaded, TALK, None),
        sample(loaded, TALK, clip(vision, 32, 64, 3, 2)),
        sample(loaded, exchange("And here?", "nothing"), clip(vision, 64, 64, 1, 3)),
    ]


def logits(
    model: Any, loaded: Loaded, row: Sequence[Sample], positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Of samples in one row; nothing but positions tells them apart."""
    if positions is None:
        positions = torch.cat([each.positions for each in row], dim=1)
    ids = torch.cat([each.ids for each in row])[None]
    vision = loaded.vision
    shown = [normalised(each.clip, vision, CPU, torch.float32) for each in row if each.clip and vision]
    with torch.no_grad():
        output = model(
            input_ids=ids,
            attention_mask=None,
            position_ids=row_positions([positions]),
            use_cache=False,
            **({} if vision is None else vision.inputs(ids, [shown])),
        )
    found: torch.Tensor = output.logits[0]
    return found


# ---- every family ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_samples_in_one_row_do_not_see_one_another(name: str, folders: dict[str, Path]) -> None:
    loaded = load_model(str(folders[name]), CPU)
    injected = inject(loaded, Hyperparameters())
    torch.manual_seed(5)
    with torch.no_grad():
        for _, parameter in injected.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    given = samples(loaded)
    alone = torch.cat([logits(injected.model, loaded, [each]) for each in given])
    together = logits(injected.model, loaded, given)
    assert float((alone - together).abs().max()) <= 1e-5
    # What this would see, if they did: positions that do not begin again, or M-RoPE's three rows alone.
    length = sum(map(len, given))
    rows = torch.cat([each.positions for each in given], dim=1)[1:]
    plain = rows if len(rows) else torch.arange(length)[None]
    assert float((alone - logits(injected.model, loaded, given, plain)).abs().max()) > 0.1


@pytest.mark.parametrize("name", RECIPES)
def test_a_job_trains_and_its_model_is_judged(
    name: str, folders: dict[str, Path], make_spec: MakeSpec, manifest_file: Path, tmp_path: Path
) -> None:
    verdict = validate_model(ModelValidationSpec(model_folder=str(folders[name])), Recorded())
    assert verdict.facts is not None, verdict.problems
    assert verdict.facts.text_linear_layers == 14
    assert bool(verdict.facts.vision_linear_layers) == bool(verdict.facts.connector_linear_layers)
    assert bool(verdict.facts.vision_linear_layers) == (name in SEEING)

    manifest = read_manifest(manifest_file)
    talk = tuple(Turn(role=turn.role, text=turn.text) for turn in TALK)
    texts = [Example(messages=talk, row=100 + number) for number in range(2)]
    texts += [Example(messages=one_turn(f"{number}?", "yes"), row=110 + number) for number in range(4)]
    examples = (*manifest.examples[:6], *texts) if name in SEEING else tuple(texts)
    file = tmp_path / "manifest.json"
    used = {example.clip for example in examples}
    clips = tuple(each for each in manifest.clips if each.path in used)
    file.write_text(Manifest(clips=clips, examples=examples).model_dump_json(), "utf-8")
    fewer = {"frame_pixels": 512} if name.endswith("_vl") else {}
    spec = make_spec(max_steps=3, batch_size=4, micro_batch_size=2, checkpoint_every_steps=2, **fewer)
    changed = {"model_folder": str(folders[name]), "manifest_file": str(file)}
    recorded = Recorded()
    train(spec.model_copy(update=changed), recorded, StopWish(), CPU)
    (done,) = recorded.of("training_done")
    assert done.steps == 3
    before, after = recorded.of("evaluation_done")
    assert after.evaluation.loss != before.evaluation.loss
    assert done.facts.family == verdict.facts.family
    described = json.loads((Path(done.adapter_folder) / "kinora_adapter.json").read_text("utf-8"))
    if name in SEEING:
        assert described["frames"]["resize"]["most_pixels"] == fewer.get("frame_pixels")
    assert (Path(done.adapter_folder) / "adapter_model.safetensors").stat().st_size > 10_000


@pytest.mark.parametrize("name", RECIPES)
def test_answers_to_many_questions_are_the_answers_to_each(name: str, base: Any) -> None:
    loaded: Loaded = base(name)
    vision = loaded.vision
    shown = [None, None] if vision is None else [clip(vision, 64, 48, 4), None, clip(vision, 32, 64, 2)]
    given = {f"clip {place}": each for place, each in enumerate(shown)}
    frames: Any = SimpleNamespace(of=lambda path: given[path])
    collator = Collator(loaded.prompts, frames, loaded.context_tokens)
    examples = [
        Example(clip=path if each else None, messages=one_turn("Why " * (1 + row), "so"), row=row + 1)
        for row, (path, each) in enumerate(given.items())
    ]
    runner = Runner(loaded.model, loaded)
    with torch.no_grad():
        together = runner.answers(collator.questions(examples), 6)
        alone = [runner.answers(collator.questions([example]), 6)[0] for example in examples]
    assert together == alone


@pytest.mark.parametrize("name", SEEING)
def test_tokens_are_counted_without_decoding(name: str, base: Any, clips: Path, manifest_file: Path) -> None:
    loaded: Loaded = base(name)
    manifest = read_manifest(manifest_file)
    frames = frames_of(clips, manifest_file, loaded.vision)
    collator = Collator(loaded.prompts, frames, loaded.context_tokens)
    for known, example in zip(manifest.clips[:3], manifest.examples[:3], strict=True):
        assert known.path == example.clip
        counted = collator.encoded(example, shown_clip(known, loaded.vision, frames.sampling))
        assert counted.ids == tuple(collator.sample(example).ids.tolist())


@pytest.mark.parametrize("name", RECIPES)
def test_every_answer_is_supervised_and_nothing_else(name: str, base: Any) -> None:
    loaded: Loaded = base(name)
    encoded = loaded.prompts.encode(TALK, None)
    said, run = [], []
    for token, supervised in zip((*encoded.ids, 0), (*encoded.supervised, False), strict=True):
        if supervised:
            run.append(token)
        elif run:
            assert run[-1] == loaded.prompts.end_token_id
            said.append(loaded.prompts.answer(run))
            run = []
    assert said == ["A ball.", "To the left."]
    assert loaded.prompts.answer(list(encoded.ids[encoded.last_answer :])) == "To the left."
    question = loaded.tokenizer.decode(encoded.ids[: encoded.last_answer])
    assert "Be brief." in question
    assert question.index("What moves?") < question.index("A ball.") < question.index("Where to?")


@pytest.mark.parametrize("name", RECIPES)
def test_words_that_steer_the_model_are_refused(name: str, base: Any) -> None:
    loaded: Loaded = base(name)
    token = loaded.tokenizer.convert_ids_to_tokens(loaded.prompts.end_token_id)
    with pytest.raises(ControlTokenInCaption, match=r"prompt .*steers"):
        loaded.prompts.encode(exchange(f"a {token}", "b"), None)
    with pytest.raises(ControlTokenInCaption, match=r"response .*steers"):
        loaded.prompts.encode(exchange("a", f"{token} b"), None)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(SEEING)))
def test_a_model_of_text_alone_sees_no_clips(name: str, base: Any) -> None:
    loaded: Loaded = base(name)
    shown = clip(base("smolvlm").vision, 32, 32, 2).shown
    with pytest.raises(ModelRefused, match="choose a video-text model") as refused:
        loaded.prompts.encode(TALK, shown)
    assert refused.value.code == "no_vision"


@pytest.mark.parametrize("missing", ["tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_without_a_file_is_refused(
    name: str, missing: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / "base"))
    if not (folder / missing).exists():
        assert (name in SEEING, missing) == (False, "preprocessor_config.json")
        return
    (folder / missing).unlink()
    with pytest.raises(ModelRefused, match=missing) as refused:
        load_model(str(folder), CPU)
    assert refused.value.code in ("unusable_tokenizer", "missing_processor")


# ---- Qwen's clips -----------------------------------------------------------------------------------------

sides = st.integers(20, 2000)


def qwen(kind: type[Any], least: int, most: int, patch: int) -> Any:
    colours = (0.5, 0.5, 0.5)
    return kind(colours, colours, patch, 2, 2, least, most, video_token_id=7)


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.integers(1, 64), st.sampled_from([56 * 56, 128 * 28 * 28]))
def test_frames_of_qwen2_5_are_sized_as_its_processor_sizes_them(
    width: int, height: int, frames: int, least: int
) -> None:
    vision = qwen(qwen2_5_vl.Qwen25Vision, least, 768 * 28 * 28, 14)
    layout = vision.layout(width, height, frames)
    most = min(768 * 28 * 28, int(128_000 * 28 * 28 * 0.9) * 2 // frames)
    if round(width / 28) and round(height / 28):
        theirs = resize_of_qwen2_5(height, width, 28, least, max(most, int(least * 1.05)))
        assert (layout.height, layout.width) == theirs
    assert layout.step_tokens * 4 == layout.rows * layout.columns == layout.height * layout.width // 14**2
    assert layout.tokens == -(-frames // 2) * layout.step_tokens > 0


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.integers(2, 64), st.sampled_from([4096, 128 * 32 * 32]))
def test_frames_of_qwen3_make_as_many_tokens_as_its_processor_says(
    width: int, height: int, frames: int, least: int
) -> None:
    most = 24 * 1024 * 1024
    vision = qwen(qwen3_vl.Qwen3Vision, least, most, 16)
    size = {"shortest_edge": least, "longest_edge": most}
    kept: Any = SimpleNamespace(
        size=size, patch_size=16, merge_size=2, temporal_patch_size=2, max_video_tokens=768,
        cap_pixels_per_frame=True,
    )  # fmt: skip
    patches = Qwen3VLVideoProcessor.get_num_of_video_patches(kept, frames, height, width)
    assert vision.layout(width, height, frames).tokens * 4 == patches


@settings(max_examples=200, deadline=None)
@given(
    sides,
    sides,
    st.integers(1, 64),
    st.integers(256, 10**6),
    st.sampled_from([qwen2_5_vl.Qwen25Vision, qwen3_vl.Qwen3Vision]),
)
def test_a_jobs_limit_of_pixels_holds_for_every_frame(
    width: int, height: int, frames: int, allowed: int, kind: type[Any]
) -> None:
    vision = qwen(kind, 4096, 24 * 1024 * 1024, 14)
    free, kept = (each.layout(width, height, frames) for each in (vision, vision.within(allowed)))
    pixels = kept.height * kept.width
    assert pixels <= max(allowed, vision.factor**2)
    assert (kept.height % vision.factor, kept.width % vision.factor) == (0, 0)
    assert kept.steps == free.steps
    assert 1 <= kept.step_tokens == pixels // vision.factor**2 <= free.step_tokens
    if free.height * free.width <= allowed:
        assert kept == free


def test_a_limit_of_pixels_is_refused_where_frames_have_one_size(base: Any) -> None:
    with pytest.raises(ModelRefused, match=r"frame_pixels is 900, but every frame .* 32 x 32") as refused:
        base("smolvlm").vision.within(900)
    assert refused.value.code == "fixed_frame_size"


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_patches_stand_in_the_processors_order(frames: int) -> None:
    vision = qwen(qwen3_vl.Qwen3Vision, 1, 10**9, 8)
    pixels = torch.randn(frames, 3, 48, 32)
    processor: Any = None
    theirs, *grid = Qwen3VLVideoProcessor.patchify(processor, pixels[None], 8, 2, 2)
    ours = vision.patches(pixels)
    assert torch.equal(ours, theirs[0])
    layout = vision.layout(32, 48, frames)
    assert [layout.steps, layout.rows, layout.columns] == grid


def test_clips_of_impossible_shape_and_contradicting_limits_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ClipShapeRefused, match="4100 x 20, more than 200 times") as refused:
        qwen(qwen3_vl.Qwen3Vision, 4096, 10**6, 16).layout(4100, 20, 2)
    assert refused.value.code == "clip_shape"
    for wrong in ('{"size": {"shortest_edge": 9000, "longest_edge": 100}}', '{"max_pixels": "many"}'):
        folder = tmp_path / str(len(wrong))
        shutil.copytree(folders["qwen3_vl"], folder)
        (folder / "preprocessor_config.json").write_text(wrong, "utf-8")
        with pytest.raises(ModelRefused, match="the preprocessor's") as bad:
            load_model(str(folder), CPU)
        assert bad.value.code == "bad_config"


# ---- Qwen's prompts ---------------------------------------------------------------------------------------


def processor(kind: type[Any], loaded: Loaded) -> Any:
    """transformers' own, without its image part, which needs torchvision."""
    made = object.__new__(kind)
    made.video_token, made.vision_start_token = qwen_vl.VIDEO, qwen_vl.VISION_START
    made.vision_end_token = qwen_vl.VISION_END
    made.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    return made


@pytest.mark.parametrize("frames", [1, 4, 5])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_a_clip_is_worded_as_its_processor_words_it(name: str, frames: int, base: Any) -> None:
    loaded: Loaded = base(name)
    assert loaded.vision is not None
    per_second = 4.0
    indices = [3 * index + index % 2 for index in range(frames)]
    layout = loaded.vision.layout(64, 48, frames)
    shown = Shown(layout, Moments(tuple(index / per_second for index in indices), 9.0))
    inputs = {
        "video_grid_thw": torch.tensor([[layout.steps, layout.rows, layout.columns]]),
        "video_metadata": [SimpleNamespace(fps=per_second, frames_indices=list(indices))],
    }
    kind = {"qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}[name]
    theirs = processor(kind, loaded).replace_video_token(inputs, 0)
    question, answer = loaded.prompts.pieces(exchange("Why?", "So."), shown)  # type: ignore[attr-defined]
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if name == "qwen2_5_vl" else ""
    assert question.text == (
        f"{system}<|im_start|>user\n<|vision_start|>{theirs}<|vision_end|>Why?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert answer.text == "So.<|im_end|>"
    encoded = loaded.prompts.encode(exchange("Why?", "So."), shown)
    assert encoded.ids.count(loaded.model.config.video_token_id) == layout.tokens
    assert list(encoded.ids) == loaded.tokenizer(question.text + answer.text)["input_ids"]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 9),
    width=st.integers(20, 400),
    height=st.integers(20, 400),
    duration=st.floats(0.05, 40),
    talk=st.booleans(),
)
def test_positions_are_those_of_the_model(
    name: str, frames: int, width: int, height: int, duration: float, talk: bool, base: Any
) -> None:
    loaded: Loaded = base(name)
    assert loaded.vision is not None
    layout = loaded.vision.layout(width, height, frames)
    seconds = tuple(duration * index / frames for index in range(frames))
    shown = Shown(layout, Moments(seconds, duration))
    encoded = loaded.prompts.encode(TALK if talk else exchange("Why?", "So."), shown)
    ids = torch.tensor([encoded.ids])
    pixels = SimpleNamespace(frames=torch.zeros(frames, 3, layout.height, layout.width), shown=shown)
    inputs: dict[str, Any] = loaded.vision.inputs(ids, [[pixels]])  # type: ignore[list-item]
    theirs, _ = loaded.model.model.get_rope_index(ids, **inputs)
    ours = loaded.prompts.positions(encoded.ids, shown)
    assert torch.equal(ours[1:], theirs[:, 0])
    assert torch.equal(ours[0], torch.arange(len(encoded.ids)))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_the_model_takes_exactly_the_tokens_that_are_counted(name: str, base: Any) -> None:
    loaded: Loaded = base(name)
    assert loaded.vision is not None
    shown = clip(loaded.vision, 64, 48, 4)
    fewer = Shown(replace(shown.layout, steps=1), replace(shown.moments, seconds=shown.moments.seconds[:2]))
    ids = loaded.prompts.encode(exchange("Why?", "So."), fewer).ids
    wrong = Sample(torch.tensor(ids), torch.tensor(ids), torch.arange(len(ids))[None], shown)
    with pytest.raises(ValueError, match="do not match"):
        logits(loaded.model, loaded, [wrong])


# ---- templates --------------------------------------------------------------------------------------------

THINKING = (
    "{%- set last = namespace(at=messages|length - 2) -%}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.index0 > last.at %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
"""As Qwen3's: empty thoughts before the last answer, none before earlier ones."""


def rendered(loaded: Loaded, template: str | None) -> list[tuple[str, bool]]:
    tokenizer = loaded.tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        prompts = loaded.family.prompts(loaded.model.config, tokenizer)
        encoded = prompts.encode(TALK, None)
    finally:
        tokenizer.chat_template = before
    runs: list[tuple[list[int], bool]] = []
    for token, supervised in zip(encoded.ids, encoded.supervised, strict=True):
        if not runs or runs[-1][1] != supervised:
            runs.append(([], supervised))
        runs[-1][0].append(token)
    return [(tokenizer.decode(run), supervised) for run, supervised in runs]


def test_templates_with_thoughts_are_answered_without(base: Any) -> None:
    pieces = rendered(base("qwen3"), THINKING)
    answers = [text for text, supervised in pieces if supervised]
    assert answers == ["A ball.<|im_end|>", "To the left.<|im_end|>"]
    assert pieces[0][0].endswith("<|im_start|>assistant\n")
    assert pieces[2][0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_checkpoints_without_a_template_get_the_one_of_their_tokens(base: Any) -> None:
    assert rendered(base("llama"), None)[0][0] == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat moves?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert rendered(base("qwen2"), None)[0][0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "ends no answer with a special token"),
        ("{% for m in messages %}{{ loop.length }}{{ m.content }}<|im_end|>{% endfor %}", "no answer begins"),
        ("{{ raise_exception('no system') }}", "no system"),
    ],
)
def test_templates_without_answers_are_refused(template: str, says: str, base: Any) -> None:
    with pytest.raises(ModelRefused, match=says) as refused:
        rendered(base("qwen2"), template)
    assert refused.value.code == "unusable_chat_template"


def test_a_template_that_forgets_the_clip_is_refused(base: Any) -> None:
    loaded: Loaded = base("qwen3_vl")
    assert loaded.vision is not None
    template = "{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}"
    template += "{% if add_generation_prompt %}a{% endif %}"
    before, loaded.tokenizer.chat_template = loaded.tokenizer.chat_template, template
    try:
        prompts = loaded.family.prompts(loaded.model.config, loaded.tokenizer)
        with pytest.raises(ModelRefused, match="renders 1 clip as 0"):
            prompts.encode(exchange("Why?", "So."), clip(loaded.vision, 32, 32, 2).shown)
    finally:
        loaded.tokenizer.chat_template = before
