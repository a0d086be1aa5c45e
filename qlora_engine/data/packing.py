"""Which samples share a row: best fit, longest first, within a window of the sampler's order.

A pure function of the order and the lengths: nothing of it need be kept, because it can be made again. Free
of torch.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

WINDOW = 1024
"""Samples that are looked at together. More fill rows better and mix an epoch less thoroughly."""
FULL = 0.99
"""A row as full as this is closed; a less full one may still be filled in the next window."""
CARRIED = 64
"""Most rows that are left open for the next window: looking for room must not slow down with an epoch."""


def pack(
    order: Sequence[int], lengths: Sequence[int], budget: int, window: int = WINDOW
) -> list[tuple[int, ...]]:
    """Rows of at most `budget` tokens that hold every sample of `order` exactly once.

    `lengths` are tokens by sample. The rows of a window come in the order of their first samples, so that the
    sampler's shuffling is not undone by sorting. What is left open at the end of a window stays open for the
    next one: so only the last rows of an epoch can be far from full.

    Raises:
        ValueError: a sample is longer than the budget.
    """
    for sample in order:
        if lengths[sample] > budget:
            raise ValueError(f"sample {sample} has {lengths[sample]} tokens, more than the budget {budget}")
    rows: list[tuple[int, ...]] = []
    open_rows: list[list[int]] = []
    for start in range(0, len(order), window):
        place = {sample: number for number, sample in enumerate(order[start : start + window])}
        filled = _best_fit(open_rows, order[start : start + window], lengths, budget)
        last = start + window >= len(order)
        open_rows, closed = ([], filled) if last else _left_open(filled, lengths, budget)
        # A row that was carried over comes first: its samples have waited longest.
        closed.sort(key=lambda row: min(place.get(sample, -1) for sample in row))
        rows.extend(tuple(row) for row in closed)
    return rows


def _best_fit(
    begun: Sequence[list[int]], samples: Sequence[int], lengths: Sequence[int], budget: int
) -> list[list[int]]:
    """`begun` rows filled up, and new ones: each sample goes where the least room is left after it."""
    rows = [list(row) for row in begun]
    # (room, row), by room: ties go to the older row.
    room = sorted(
        (budget - sum(lengths[sample] for sample in row), number) for number, row in enumerate(rows)
    )
    for sample in sorted(samples, key=lambda sample: -lengths[sample]):  # stable: equal ones keep their order
        length = lengths[sample]
        fitting = bisect_left(room, (length, -1))
        if fitting == len(room):
            rows.append([sample])
            insort(room, (budget - length, len(rows) - 1))
            continue
        left, number = room.pop(fitting)
        rows[number].append(sample)
        insort(room, (left - length, number))
    return rows


def _left_open(
    rows: Sequence[list[int]], lengths: Sequence[int], budget: int
) -> tuple[list[list[int]], list[list[int]]]:
    """The emptiest rows, as far as they are worth filling up, and all others."""
    fill = [sum(lengths[sample] for sample in row) for row in rows]
    emptiest = sorted(range(len(rows)), key=lambda number: (fill[number], number))
    kept = {number for number in emptiest[:CARRIED] if fill[number] < FULL * budget}
    return (
        [row for number, row in enumerate(rows) if number in kept],
        [row for number, row in enumerate(rows) if number not in kept],
    )
