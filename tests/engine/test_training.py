"""Training is exact, resumable bit for bit, stoppable, and makes the model better at what it is shown."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from safetensors.torch import load_file

from qlora_engine.adapters.injection import Injected, inject
from qlora_engine.data.collate import IGNORED, Collator
from qlora_engine.data.samples import split
from qlora_engine.errors import CheckpointUnusable, FramesExceedClip, NonFiniteLoss
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import read_manifest, train
from qlora_engine.training.checkpoints import KEPT, Identity, verify
from qlora_engine.training.evaluation import Evaluator, undisturbed
from qlora_engine.training.forward import Runner
from qlora_engine.training.loss import Loss
from schemas.datasets import Example, one_turn
from schemas.training import Hyperparameters, ResumePoint, TrainingSpec
from tests.engine.conftest import MakeSpec, Recorded, frames_of

CPU = torch.device("cpu")


@pytest.fixture
def loaded(tiny: Path) -> Loaded:
    return load_model(str(tiny), CPU)


@pytest.fixture
def examples(manifest_file: Path) -> tuple[Example, ...]:
    """Answers of different lengths, so that a mean of means would be wrong."""
    given = read_manifest(manifest_file).examples[:6]
    return tuple(
        example.model_copy(update={"response": example.response + " and further" * (index % 3)})
        for index, example in enumerate(given)
    )


@pytest.fixture
def collator(loaded: Loaded, clips: Path, manifest_file: Path) -> Collator:
    return Collator(loaded.prompts, frames_of(clips, manifest_file, loaded.vision), loaded.context_tokens)


def gradients(injected: Injected, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()  # type: ignore[no-untyped-call]
    found = {
        name: parameter.grad.clone() for name, parameter in injected.trainable() if parameter.grad is not None
    }
    for _, parameter in injected.trainable():
        parameter.grad = None
    return found


def unlike_zero(injected: Injected) -> None:
    """LoRA's B starts at zero, which hides half of the gradients."""
    torch.manual_seed(5)
    with torch.no_grad():
        for _, parameter in injected.trainable():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def test_only_the_answer_and_its_end_are_supervised(
    collator: Collator, examples: tuple[Example, ...], loaded: Loaded
) -> None:
    batch = collator.batch(examples)
    parts = zip(batch.ids[0].split(batch.lengths), batch.labels[0].split(batch.lengths), strict=True)
    for example, (ids, labels) in zip(examples, parts, strict=True):
        supervised = ids[labels != IGNORED].tolist()
        assert supervised[-1] == loaded.prompts.end_token_id
        assert loaded.tokenizer.decode(supervised[:-1]) == f" {example.response}"
    assert batch.tokens == batch.ids.numel() == int((batch.ids != loaded.prompts.pad_token_id).sum())


def test_a_split_batch_has_the_same_gradient(
    loaded: Loaded, collator: Collator, examples: tuple[Example, ...]
) -> None:
    injected = inject(loaded, Hyperparameters())
    unlike_zero(injected)
    injected.model.train()
    runner = Runner(injected.model, loaded)
    batch = collator.batch(examples)
    whole = gradients(injected, runner.loss(batch).total / batch.supervised)
    parts: dict[str, torch.Tensor] = {}
    for start in range(0, len(examples), 2):
        part = runner.loss(collator.batch(examples[start : start + 2]))
        for name, gradient in gradients(injected, part.total / batch.supervised).items():
            parts[name] = parts.get(name, torch.zeros_like(gradient)) + gradient
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    error = max(float((whole[name] - parts[name]).abs().max()) for name in whole)
    assert whole.keys() == parts.keys() == dict(injected.trainable()).keys()
    assert error / scale < 5e-6


def test_an_evaluation_does_not_change_the_next_gradient(
    loaded: Loaded, collator: Collator, examples: tuple[Example, ...]
) -> None:
    injected = inject(loaded, Hyperparameters(dropout=0.2))
    unlike_zero(injected)
    injected.model.train()
    runner = Runner(injected.model, loaded)
    batch = collator.batch(examples)
    torch.manual_seed(1)
    before = gradients(injected, runner.loss(batch).total)
    torch.manual_seed(1)
    with undisturbed(injected.model, CPU):
        runner.loss(batch)
        runner.answers(collator.questions(examples), 4)
        torch.rand(10)
    after = gradients(injected, runner.loss(batch).total)
    assert injected.model.training
    assert before.keys() == dict(injected.trainable()).keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_adapters_go_only_where_they_are_wanted(loaded: Loaded) -> None:
    injected = inject(loaded, Hyperparameters(target_modalities=("connector",)))
    names = [name for name, _ in injected.trainable()]
    assert names
    assert all(".connector." in name for name in names)


def test_training_learns_and_reports(make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish) -> None:
    spec = make_spec(max_steps=60, batch_size=32, checkpoint_every_steps=25)
    train(spec, recorded, no_stop, CPU)

    before, after = recorded.of("evaluation_done")
    assert (before.phase, before.step, after.phase, after.step) == ("before", 0, "after", 60)
    assert before.evaluation.examples == after.evaluation.examples == 16
    assert before.evaluation.exact_match == 0
    assert after.evaluation.exact_match >= 0.25  # 1 in 60 by chance
    assert after.evaluation.loss < before.evaluation.loss / 2
    (began,) = recorded.of("training_began")
    assert (began.training_examples, began.held_out_examples, began.total_steps) == (64, 16, 60)
    steps = recorded.of("step_taken")
    assert [step.point.step for step in steps] == list(range(1, 61))
    assert steps[-1].epoch == pytest.approx(60 * 32 / 64)
    assert all(step.peak_memory_bytes > 0 for step in steps)
    (done,) = recorded.of("training_done")
    assert (done.loss_first, done.loss_last) == (steps[0].point.loss, steps[-1].point.loss)
    assert done.loss_last < done.loss_first / 2
    series = [json.loads(line) for line in Path(done.series_file).read_text("utf-8").splitlines()]
    assert series == [step.point.model_dump(mode="json") for step in steps]
    assert [written.step for written in recorded.of("checkpoint_written")] == [25, 50]
    assert {update.phase for update in recorded.of("preparing")} == {
        "loading_data", "loading_model", "evaluating", "saving",
    }  # fmt: skip


def adapter_of(spec: TrainingSpec) -> dict[str, torch.Tensor]:
    return load_file(Path(spec.output_folder) / "adapter" / "adapter_model.safetensors")


def numbers(recorded: Recorded) -> list[tuple[int, float, float, float]]:
    points = [update.point for update in recorded.of("step_taken")]
    return [(point.step, point.loss, point.learning_rate, point.grad_norm) for point in points]


def test_a_resumed_training_is_the_unbroken_one_bit_for_bit(make_spec: MakeSpec, no_stop: StopWish) -> None:
    chosen: dict[str, Any] = {
        "dropout": 0.1,
        "micro_batch_size": 3,
        "max_steps": 9,
        "checkpoint_every_steps": 4,
    }
    whole, resumed = Recorded(), Recorded()
    unbroken = make_spec("unbroken", **chosen)
    train(unbroken, whole, no_stop, CPU)
    checkpoint = Path(unbroken.output_folder) / "checkpoint-4"
    torch.manual_seed(999)
    again = make_spec("again", ResumePoint(step=4, folder=str(checkpoint)), **chosen)
    train(again, resumed, no_stop, CPU)

    assert resumed.of("training_began")[0].start_step == 4
    assert numbers(resumed) == numbers(whole)[4:]
    expected, found = adapter_of(unbroken), adapter_of(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    first, last = whole.of("training_done")[0], resumed.of("training_done")[0]
    assert (first.loss_first, first.loss_last) == (last.loss_first, last.loss_last)
    lines = Path(last.series_file).read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 10))
    evaluations = [recorder.of("evaluation_done")[-1].evaluation for recorder in (whole, resumed)]
    assert evaluations[0] == evaluations[1]


@pytest.mark.parametrize("too_fast", [False, True])
def test_packed_rows_8_bit_moments_and_early_stopping_resume_bit_for_bit(
    too_fast: bool, make_spec: MakeSpec, no_stop: StopWish
) -> None:
    chosen: dict[str, Any] = {
        "optimizer": "adamw_8bit",
        "rank": 64,  # large enough for bitsandbytes to keep moments in 8 bits
        "dropout": 0.1,
        "tokens_per_micro_batch": 300,
        "tokens_per_step": 900,
        "max_steps": 8,
        "checkpoint_every_steps": 1 if too_fast else 3,
        "learning_rate": 1.0 if too_fast else 5e-3,
        "evaluate_every_steps": 1 if too_fast else 4,
        "early_stopping_patience": 1,
        "held_out_fraction": 0.05,
    }
    whole, resumed = Recorded(), Recorded()
    unbroken = make_spec("unbroken", **chosen)
    train(unbroken, whole, no_stop, CPU)
    losses = {done.step: done.evaluation.loss for done in whole.of("evaluation_done") if done.step > 0}
    best = min(losses, key=lambda step: losses[step])
    (done,) = whole.of("training_done")
    after = whole.of("evaluation_done")[-1]
    assert (after.phase, after.step, after.evaluation.loss) == ("after", done.steps, losses[best])
    assert 0 <= after.evaluation.token_accuracy <= 1
    messages = {logged.code: logged.message for logged in whole.of("logged")}
    if too_fast:  # soon a step makes it worse
        assert messages.keys() == {"stopped_early", "best_adapter_kept"}
        assert f"adapter of step {best} is kept" in messages["best_adapter_kept"]
        assert done.steps == best + 1 < 8
    else:
        assert messages == {}
        assert done.steps == best == 8
    assert (done.stopped_early, done.adapter_step, done.facts.steps) == (too_fast, best, best)
    assert after.adapter_step == (best if too_fast else None)

    checkpoints = Path(unbroken.output_folder).glob("checkpoint-*")
    first = min(checkpoints, key=lambda folder: int(folder.name.split("-")[1]))
    start = int(first.name.split("-")[1])
    state = load_file(first / "optimizer.safetensors")
    assert any(name.endswith("/state1") and tensor.dtype == torch.uint8 for name, tensor in state.items())
    again = make_spec("again", ResumePoint(step=start, folder=str(first)), **chosen)
    train(again, resumed, no_stop, CPU)
    assert numbers(resumed) == numbers(whole)[start:]
    expected, found = adapter_of(unbroken), adapter_of(again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert resumed.of("training_done")[0].steps == done.steps


def test_paging_without_a_gpu_is_said_to_be_none(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    train(make_spec(max_steps=1, optimizer="paged_adamw_8bit"), recorded, no_stop, CPU)
    assert [logged.code for logged in recorded.of("logged")] == ["not_paged"]


def test_a_row_that_costs_far_more_than_the_others_is_named(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    spec = make_spec(max_steps=30, batch_size=32)
    manifest = read_manifest(Path(spec.manifest_file))
    wrong = split(manifest, 0.2, 0).training[5]
    examples = tuple(
        example.model_copy(update={"messages": one_turn(example.prompt, "zq xw 9 vvk")})
        if example == wrong
        else example
        for example in manifest.examples
    )
    file = Path(spec.output_folder).parent / "manifest.json"
    file.write_text(manifest.model_copy(update={"examples": examples}).model_dump_json(), "utf-8")
    train(spec.model_copy(update={"manifest_file": str(file)}), recorded, no_stop, CPU)
    (told,) = recorded.of("logged")
    assert (told.level, told.code) == ("warning", "loss_outliers")
    assert f"{wrong.where} ({wrong.clip}) " in told.message
    table = Path(spec.output_folder, "adapter", "loss_outliers.jsonl").read_text("utf-8")
    assert json.loads(table.splitlines()[0])["row"] == wrong.row


def test_a_checkpoint_at_the_last_step_still_ends_in_an_adapter(
    make_spec: MakeSpec, no_stop: StopWish
) -> None:
    whole, resumed = Recorded(), Recorded()
    unbroken = make_spec("unbroken", max_steps=4, checkpoint_every_steps=2)
    train(unbroken, whole, no_stop, CPU)
    checkpoint = Path(unbroken.output_folder) / "checkpoint-4"
    again = make_spec(
        "again", ResumePoint(step=4, folder=str(checkpoint)), max_steps=4, checkpoint_every_steps=2
    )
    train(again, resumed, no_stop, CPU)
    assert resumed.of("step_taken") == []
    assert resumed.of("training_done")[0].loss_last == whole.of("training_done")[0].loss_last
    assert adapter_of(again).keys() == adapter_of(unbroken).keys()


def test_checkpoints_are_complete_few_and_verified(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    spec = make_spec(max_steps=8, checkpoint_every_steps=2)
    train(spec, recorded, no_stop, CPU)
    output = Path(spec.output_folder)
    folders = sorted(folder.name for folder in output.iterdir() if "checkpoint" in folder.name)
    assert folders == ["checkpoint-6", "checkpoint-8"]
    assert len(folders) == KEPT
    assert not [
        file for file in (output / "checkpoint-8").iterdir() if file.suffix in (".bin", ".pt", ".pkl")
    ]
    verify(output / "checkpoint-8")

    damaged = output / "damaged"
    shutil.copytree(output / "checkpoint-8", damaged)
    content = bytearray((damaged / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "optimizer.safetensors").write_bytes(content)
    with pytest.raises(CheckpointUnusable, match=r"optimizer\.safetensors is damaged"):
        verify(damaged)
    (damaged / "checkpoint.json").unlink()
    with pytest.raises(CheckpointUnusable, match="incomplete"):
        verify(damaged)

    other = make_spec("other", ResumePoint(step=8, folder=str(output / "checkpoint-8")), learning_rate=1e-3)
    with pytest.raises(CheckpointUnusable, match=r"learning_rate was 0\.005 and is 0\.001") as refused:
        train(other, recorded, no_stop, CPU)
    assert (refused.value.code, refused.value.retryable) == ("checkpoint_mismatch", True)


def test_a_checkpoint_outlives_hyperparameters_that_come_and_go() -> None:
    identity = Identity(Hyperparameters(rank=4), "a" * 64, "b" * 64)
    written = identity.described()
    assert identity.differences(written) == []
    # Written by an earlier release, which knew no dropout and still knew a colour.
    older = {name: value for name, value in written["hyperparameters"].items() if name != "dropout"}
    older["colour"] = "red"
    assert identity.differences(written | {"hyperparameters": older}) == []
    chosen = Identity(Hyperparameters(rank=4, dropout=0.5), "a" * 64, "c" * 64)
    assert chosen.differences(written | {"hyperparameters": older}) == [
        "dropout was 0.0 and is 0.5",
        "the dataset is another",
    ]


def test_a_loss_that_is_no_number_stops_before_the_step(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Runner.loss

    def poisoned(runner: Runner, batch: Any) -> Loss:
        loss = real(runner, batch)
        poison = float("nan") if len(recorded.of("step_taken")) == 2 else 1.0
        return replace(loss, total=loss.total * poison)

    monkeypatch.setattr(Runner, "loss", poisoned)
    spec = make_spec(checkpoint_every_steps=2)
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step 3") as stopped:
        train(spec, recorded, no_stop, CPU)
    assert stopped.value.code == "non_finite_loss"
    evidence = json.loads(Path(spec.output_folder, "non_finite.json").read_text("utf-8"))
    assert (evidence["step"], evidence["value"], len(evidence["rows"])) == (3, "nan", 8)
    assert [point["step"] for point in evidence["steps_before"]] == [1, 2]
    told, every = recorded.of("logged")
    assert [(line.level, line.code) for line in (told, every)] == [
        ("error", "non_finite_evidence"),
        ("info", "non_finite_rows"),
    ]
    assert all(f"{row['file']} row {row['row']} ({row['clip']})" in every.message for row in evidence["rows"])
    named = max(evidence["rows"], key=lambda row: float(row["loss"]))
    assert f"{named['file']} row {named['row']} ({named['clip']})" in told.message
    assert told.message in stopped.value.message
    assert [step.point.step for step in recorded.of("step_taken")] == [1, 2]


def test_more_frames_than_clips_have_is_refused_before_loading(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    with pytest.raises(FramesExceedClip, match="frames is 17"):
        train(make_spec(frames=17), recorded, no_stop, CPU)
    assert [update.phase for update in recorded.of("preparing")] == ["loading_data"]


@pytest.mark.parametrize("mode", ["graceful", "immediate"])
def test_a_stop_is_honoured_at_the_next_step(mode: Any, make_spec: MakeSpec) -> None:
    stop, recorded = StopWish(), Recorded()

    def stopping(update: Any) -> None:
        recorded(update)
        if update.kind == "step_taken" and update.point.step == 2:
            stop.ask(mode)

    spec = make_spec(max_steps=50, checkpoint_every_steps=50)
    train(spec, stopping, stop, CPU)
    (stopped,) = recorded.of("training_stopped")
    assert stopped.step == 2
    assert recorded.of("training_done") == []
    checkpoint = Path(spec.output_folder) / "checkpoint-2"
    if mode == "graceful":
        assert checkpoint.is_dir()
        assert stopped.facts.steps == 2
        assert Path(stopped.adapter_folder, "adapter_model.safetensors").is_file()
    else:
        assert not checkpoint.exists()
        assert (stopped.adapter_folder, stopped.facts) == (None, None)


def test_too_few_held_out_examples_make_no_exact_match(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    train(make_spec(max_steps=1, held_out_fraction=0.05), recorded, no_stop, CPU)
    for done in recorded.of("evaluation_done"):
        assert done.evaluation.examples == 4
        assert done.evaluation.loss is not None
        assert done.evaluation.exact_match is None


def test_many_rows_of_few_clips_make_no_exact_match(
    loaded: Loaded, collator: Collator, examples: tuple[Example, ...]
) -> None:
    evaluator = Evaluator(Runner(loaded.model, loaded), collator, examples[:1] * 12, 8, 2)
    measured = evaluator.measure(StopWish(), lambda done, total: None)
    assert measured is not None
    assert len(measured.answers) == 12
    assert measured.evaluation.exact_match is None


def test_gradient_checkpointing_changes_no_gradient(
    tiny: Path, clips: Path, manifest_file: Path, examples: tuple[Example, ...]
) -> None:
    found = []
    for checkpointing in (False, True):
        loaded = load_model(str(tiny), CPU)
        injected = inject(loaded, Hyperparameters(dropout=0.1, gradient_checkpointing=checkpointing))
        unlike_zero(injected)
        injected.model.train()
        collator = Collator(
            loaded.prompts, frames_of(clips, manifest_file, loaded.vision), loaded.context_tokens
        )
        torch.manual_seed(3)
        found.append(gradients(injected, Runner(injected.model, loaded).loss(collator.batch(examples)).total))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_no_wrapping_brings_the_repacking_of_weights_back(loaded: Loaded) -> None:
    injected = inject(loaded, Hyperparameters(gradient_checkpointing=True))
    injected.model.train()
    layers = [module for module in injected.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == len(list(loaded.linear_layers())) == 27
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
