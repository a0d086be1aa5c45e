"""The split never shares a clip, and any step's batch can be asked for without the steps before it."""

import hashlib
from collections import Counter

import pytest

from qlora_engine.data.samples import Sampler, sampled, split
from schemas.datasets import Clip, Example, Manifest, one_turn
from schemas.training import Hyperparameters, held_out_count, total_steps


def manifest(clips: int, *, captions_each: int = 1, same_content: bool = False) -> Manifest:
    made = []
    for index in range(clips):
        content = index // 2 if same_content else index
        sha256 = hashlib.sha256(str(content).encode()).hexdigest()
        made.append(
            Clip(
                path=f"{index}.mp4",
                sha256=sha256,
                size_bytes=1,
                frames=8,
                duration_seconds=1,
                width=8,
                height=8,
                codec="h264",
            )
        )
    rows = [
        Example(clip=clip.path, prompt="?", response=str(number), row=1)
        for clip in made
        for number in range(captions_each)
    ]
    return Manifest(clips=tuple(made), examples=tuple(rows))


@pytest.mark.parametrize(
    ("clips", "fraction", "held_out"),
    [(100, 0.2, 20), (5, 0.01, 1), (4, 0.2, 0), (1, 0.9, 0), (10, 0.0, 0), (10, 0.9, 9)],
)
def test_how_many_clips_are_held_out(clips: int, fraction: float, held_out: int) -> None:
    found = split(manifest(clips, captions_each=3), fraction, seed=1)
    assert len({example.clip for example in found.held_out}) == held_out
    assert len({example.clip for example in found.training}) == clips - held_out
    assert len(found.held_out) == 3 * held_out


@pytest.mark.parametrize("clips", range(1, 30))
def test_as_many_clips_are_held_out_as_the_plan_says(clips: int) -> None:
    found = split(manifest(clips), 0.2, seed=1)
    assert len(found.held_out) == held_out_count(clips, 0.2)


def test_of_many_held_out_rows_always_the_same_are_evaluated() -> None:
    rows = tuple(Example(clip="a", prompt="?", response="!", row=row) for row in range(1, 21))
    some = sampled(rows, seed=1, most=5)
    assert len(some) == 5
    assert list(some) == sorted(some, key=lambda example: example.row)
    assert set(some) == set(sampled(rows[::-1], seed=1, most=5))
    assert set(some) != set(sampled(rows, seed=2, most=5))
    assert sampled(rows, seed=1, most=20) == rows


def test_no_clip_is_on_both_sides_not_even_as_a_copy() -> None:
    whole = manifest(40, same_content=True)
    content = {clip.path: clip.sha256 for clip in whole.clips}
    found = split(whole, 0.25, seed=3)
    training = {content[example.clip] for example in found.training}
    held_out = {content[example.clip] for example in found.held_out}
    assert held_out
    assert not training & held_out


def text_row(text: str, row: int) -> Example:
    return Example(messages=one_turn(text, "!"), row=row)


def test_the_same_text_is_never_on_both_sides() -> None:
    rows = tuple(text_row(f"{row // 3}", row + 1) for row in range(90))
    whole = Manifest(clips=(), examples=rows)
    found = split(whole, 0.3, seed=2)
    assert len(found.held_out) == 27
    held_out = {example.prompt for example in found.held_out}
    assert held_out.isdisjoint(example.prompt for example in found.training)


def test_the_owners_split_comes_before_any_fraction() -> None:
    rows = [text_row(str(row), row + 1) for row in range(10)]
    rows[4] = rows[4].model_copy(update={"split": "validation"})
    rows[5] = rows[5].model_copy(update={"split": "training"})
    found = split(Manifest(clips=(), examples=tuple(rows)), 0.9, seed=2)
    assert found.held_out == (rows[4],)
    assert len(found.training) == 9


def test_the_split_depends_on_seed_and_content_only() -> None:
    whole = manifest(50)
    turned = Manifest(clips=whole.clips[::-1], examples=whole.examples[::-1])
    one, other = split(whole, 0.2, 1), split(turned, 0.2, 1)
    assert set(one.held_out) == set(other.held_out)
    assert set(one.held_out) != set(split(whole, 0.2, 2).held_out)


def test_every_epoch_takes_every_example_once_in_another_order() -> None:
    sampler = Sampler(examples=10, seed=4)
    stream = [index for step in range(10) for index in sampler.take(step * 3, 3)]
    assert Counter(stream) == Counter(dict.fromkeys(range(10), 3))
    assert stream[:10] != stream[10:20]
    assert sampler.take(13, 7) == stream[13:20]
    assert sampler.take(0, 25) == stream[:25]


def test_total_steps() -> None:
    assert total_steps(Hyperparameters(max_steps=7), 1000) == 7
    assert total_steps(Hyperparameters(epochs=2.5, batch_size=8), 100) == 32
    assert total_steps(Hyperparameters(epochs=0.01, batch_size=8), 10) == 1
    assert total_steps(Hyperparameters(epochs=0.1, batch_size=1), 70) == 7


@pytest.mark.parametrize("epochs", [0.1, 0.7, 1.0, 2.5, 3.0])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_epochs_are_taken_whole_and_exceeded_by_less_than_a_batch(epochs: float, size: int) -> None:
    for examples in range(size * 10, 200):
        taken = total_steps(Hyperparameters(epochs=epochs, batch_size=size), examples) * size
        assert -1e-6 <= taken - epochs * examples < size - 1e-6
