"""Rows dealt to processes: every sample once, in parts of a row, the tokens spread evenly."""

from hypothesis import given
from hypothesis import strategies as st

from qlora_engine.data.dealing import dealt

Rows = list[tuple[int, ...]]


@st.composite
def steps(draw: st.DrawFn) -> tuple[Rows, list[int], int]:
    lengths = draw(st.lists(st.integers(1, 500), min_size=1, max_size=12))
    samples = st.integers(0, len(lengths) - 1)
    rows = draw(st.lists(st.lists(samples, min_size=1, max_size=6).map(tuple), min_size=1, max_size=8))
    return rows, lengths, draw(st.integers(1, 8))


@given(steps())
def test_every_place_is_dealt_once_within_its_row(step: tuple[Rows, list[int], int]) -> None:
    rows, lengths, processes = step
    hands = dealt(rows, lengths, processes)
    assert len(hands) == processes
    samples = [sample for row in rows for sample in row]
    parts = [part for hand in hands for part in hand]
    assert sorted(place for part in parts for place in part) == list(range(len(samples)))
    ends = [sum(len(row) for row in rows[: number + 1]) for number in range(len(rows))]
    for part in parts:
        assert list(part) == list(range(part[0], part[-1] + 1))
        assert not any(part[0] < end <= part[-1] for end in ends)  # so it fits where its row did
    assert dealt(rows, lengths, processes) == hands


@given(steps())
def test_nobody_is_idle_while_another_has_two_samples_to_do(step: tuple[Rows, list[int], int]) -> None:
    rows, lengths, processes = step
    counts = [sum(map(len, hand)) for hand in dealt(rows, lengths, processes)]
    assert min(counts) > 0 or max(counts) <= 1


@given(steps())
def test_one_process_computes_the_rows_as_they_are(step: tuple[Rows, list[int], int]) -> None:
    rows, lengths, _ = step
    (hand,) = dealt(rows, lengths, 1)
    samples = [sample for row in rows for sample in row]
    assert [tuple(samples[place] for place in part) for part in hand] == rows


def test_one_row_is_halved_by_its_tokens() -> None:
    assert dealt([(0, 1, 2)], [60, 30, 30], 2) == (((0,),), ((1, 2),))


def test_the_longest_rows_go_to_different_processes() -> None:
    hands = dealt([(0,), (1,), (2,), (3,)], [100, 90, 10, 20], 2)
    assert hands == (((0,), (2,)), ((1,), (3,)))
