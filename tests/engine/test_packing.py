"""Packing loses nothing, repeats nothing, leaves hardly any room, and goes on from any cursor."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_engine.data.batches import Cursor, StepsOfExamples, StepsOfTokens
from qlora_engine.data.packing import pack
from qlora_engine.data.samples import Sampler
from qlora_engine.models.attention import NEGLIGIBLE, WASTE, grouped

BUDGET = 256
lengths = st.lists(st.integers(1, BUDGET), min_size=1, max_size=120)


@given(lengths, st.integers(1, 40), st.randoms(use_true_random=False))
def test_every_sample_is_in_one_row_and_no_row_is_too_long(
    given: list[int], window: int, rng: Random
) -> None:
    order = list(range(len(given)))
    rng.shuffle(order)
    rows = pack(order, given, BUDGET, window)
    assert sorted(sample for row in rows for sample in row) == sorted(order)
    assert all(row for row in rows)
    assert max(sum(given[sample] for sample in row) for row in rows) <= BUDGET


def test_lengths_of_1_to_16_fill_rows_to_97_percent() -> None:
    tokens = [round(64 * 16 ** ((number * 0.618034) % 1)) for number in range(20_000)]
    rows = pack(range(len(tokens)), tokens, 4096)
    assert sum(tokens) / (len(rows) * 4096) >= 0.97


def test_a_sample_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 1 has 9 tokens, more than the budget 8"):
        pack([0, 1], [8, 9], 8)


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 5), st.integers(0, 9))
def test_steps_of_tokens_go_on_from_any_cursor_and_use_each_epoch_whole(
    given: list[int], rows_per_step: int, seed: int
) -> None:
    steps = StepsOfTokens(Sampler(len(given), seed), rows_per_step, tuple(given), BUDGET)
    cursor, taken = Cursor(), []
    while cursor.examples < 3 * len(given):
        # A cursor that was written to JSON and read again is all that a resumed training has.
        step = StepsOfTokens(Sampler(len(given), seed), rows_per_step, tuple(given), BUDGET).at(cursor)
        assert step == steps.at(cursor)
        assert len(step.rows) == rows_per_step
        taken.extend(sample for row in step.rows for sample in row)
        cursor = step.after
        assert cursor.examples == len(taken)
    for epoch in range(3):
        whole = taken[epoch * len(given) : (epoch + 1) * len(given)]
        assert sorted(whole) == list(range(len(given)))


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_steps_of_examples_take_the_samplers_order(
    given: list[int], batch_size: int, micro: int, by_tokens: bool
) -> None:
    sampler = Sampler(len(given), 3)
    steps = StepsOfExamples(sampler, batch_size, micro, given, BUDGET if by_tokens else None)
    cursor = Cursor()
    for number in range(3):
        step = steps.at(cursor)
        taken = sampler.take(number * batch_size, batch_size)
        assert sorted(sample for row in step.rows for sample in row) == sorted(taken)
        if by_tokens:
            assert all(sum(given[sample] for sample in row) <= BUDGET for row in step.rows)
        else:
            assert [sample for row in step.rows for sample in row] == taken
            assert all(len(row) <= micro for row in step.rows)
        cursor = step.after
        assert cursor.epoch * len(given) + cursor.place == cursor.examples == (number + 1) * batch_size


@given(lengths)
def test_samples_are_attended_together_where_that_wastes_little(given: list[int]) -> None:
    groups = grouped(given)
    assert sorted(sample for group in groups for sample in group) == list(range(len(given)))
    for group in groups:
        padded = len(group) * max(given[sample] for sample in group) ** 2
        wanted = sum(given[sample] ** 2 for sample in group)
        assert padded <= wanted / (1 - WASTE) + NEGLIGIBLE
