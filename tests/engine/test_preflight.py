"""What cannot be trained is refused before the first step, by row; doubtful figures come with a caution."""

from pathlib import Path

import pytest
import torch

from qlora_engine.data.samples import Split
from qlora_engine.errors import ControlTokenInCaption, SequenceTooLong
from qlora_engine.stopping import StopWish
from qlora_engine.training.attempt import read_manifest, train
from qlora_engine.training.preflight import Tokens, cautions
from schemas.datasets import Example, Manifest, one_turn
from schemas.training import Hyperparameters, TrainingSpec
from tests.engine.conftest import MakeSpec, Recorded

CPU = torch.device("cpu")


def with_responses(spec: TrainingSpec, folder: Path, responses: dict[int, str]) -> TrainingSpec:
    """The same training with other answers in some rows."""
    manifest = read_manifest(Path(spec.manifest_file))
    examples = tuple(
        example.model_copy(
            update={"messages": one_turn(example.prompt, responses.get(example.row, example.response))}
        )
        for example in manifest.examples
    )
    file = folder / "changed.json"
    file.write_text(Manifest(clips=manifest.clips, examples=examples).model_dump_json(), "utf-8")
    return spec.model_copy(update={"manifest_file": str(file)})


def test_a_caption_longer_than_the_context_is_named_before_training(
    make_spec: MakeSpec, tmp_path: Path, recorded: Recorded, no_stop: StopWish
) -> None:
    spec = with_responses(make_spec(), tmp_path, {7: "very long " * 2000, 9: "too " * 3000})
    with pytest.raises(SequenceTooLong, match=r"captions.jsonl:7 .*takes 2048.*1 further rows"):
        train(spec, recorded, no_stop, CPU)
    assert recorded.of("training_began") == []


def test_text_and_longer_conversations_are_trained_on_beside_clips(
    make_spec: MakeSpec, tmp_path: Path, recorded: Recorded, no_stop: StopWish
) -> None:
    spec = make_spec(max_steps=2, seed=3)
    manifest = read_manifest(Path(spec.manifest_file))
    longer = tuple(
        example.model_copy(
            update={
                "clip": None if example.row % 3 == 0 else example.clip,
                "messages": example.messages if example.row % 2 else example.messages * 2,
            }
        )
        for example in manifest.examples
    )
    file = tmp_path / "changed.json"
    file.write_text(Manifest(clips=manifest.clips, examples=longer).model_dump_json(), "utf-8")
    train(spec.model_copy(update={"manifest_file": str(file)}), recorded, no_stop, CPU)
    (began,) = recorded.of("training_began")
    assert began.training_examples + began.held_out_examples == len(manifest.examples)
    assert recorded.of("training_done")


def test_a_row_longer_than_the_token_budget_is_named_before_training(
    make_spec: MakeSpec, tmp_path: Path, recorded: Recorded, no_stop: StopWish
) -> None:
    chosen = make_spec(tokens_per_micro_batch=128, held_out_fraction=0)
    spec = with_responses(chosen, tmp_path, {7: "ab " * 200})
    with pytest.raises(SequenceTooLong, match=r":7 makes \d+ tokens, but tokens_per_micro_batch is 128"):
        train(spec, recorded, no_stop, CPU)
    assert recorded.of("training_began") == []


def test_a_control_token_is_named_before_training(
    make_spec: MakeSpec, tmp_path: Path, recorded: Recorded, no_stop: StopWish
) -> None:
    spec = with_responses(make_spec(), tmp_path, {80: "an <image>"})
    with pytest.raises(ControlTokenInCaption, match=r"captions\.jsonl:80: response 'an <image>'"):
        train(spec, recorded, no_stop, CPU)
    assert recorded.of("training_began") == []


def test_answers_that_cannot_match_are_cautioned_about(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    train(make_spec(max_steps=1, max_new_tokens=2), recorded, no_stop, CPU)
    (caution,) = recorded.of("logged")
    assert (caution.level, caution.code) == ("warning", "answers_cut")
    assert caution.message.startswith("16 of 16 evaluated responses are longer than max_new_tokens 2")


def test_a_training_without_doubts_says_nothing(
    make_spec: MakeSpec, recorded: Recorded, no_stop: StopWish
) -> None:
    train(make_spec(max_steps=1), recorded, no_stop, CPU)
    assert recorded.of("logged") == []


def test_an_evaluation_that_is_not_what_was_asked_for() -> None:
    rows = tuple(Example(clip="a", prompt="?", response="!", row=row) for row in (1, 2))
    lengths = {row.where: Tokens(9, 2) for row in rows}
    nothing = cautions(Split(training=rows, held_out=()), (), lengths, Hyperparameters())
    assert [caution.code for caution in nothing] == ["nothing_held_out"]
    wanted = Hyperparameters(held_out_fraction=0)
    assert cautions(Split(training=rows, held_out=()), (), lengths, wanted) == []
    sampled = cautions(Split(training=(), held_out=rows), rows[:1], lengths, Hyperparameters())
    assert [caution.code for caution in sampled] == ["evaluation_sampled"]
