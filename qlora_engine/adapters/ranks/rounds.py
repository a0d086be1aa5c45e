"""Which steps are watched, when ranks are given out, and how long two ways are tried: pure arithmetic.

Everything follows from the hyperparameters and the number of steps, so a resumed training does the same at
the same steps. Free of torch.
"""

from dataclasses import dataclass

from schemas.training import Hyperparameters

TRIAL_SHARE = 0.015
"""Of all steps: how many the way not taken may cost."""
MOST_TRIAL_STEPS = 32
JUDGED_SHARE = 0.0075
"""Of all examples trained on: how many held-out ones each way is judged by, without a backward pass."""


@dataclass(frozen=True)
class Rounds:
    """The plan of one training."""

    explore: int
    """Steps before each round."""
    count: int
    trial: int
    """Steps that both ways are trained for."""
    judged: int
    """Held-out examples that both are judged by."""
    floor_rank: int
    rank: int

    def after(self, step: int) -> int | None:
        """The round that follows `step` taken steps, counted from 1; None where there is none."""
        number, rest = divmod(step, self.explore)
        return number if rest == 0 and 1 <= number <= self.count else None

    def watches(self, step: int) -> bool:
        """Whether the step of this number is of the second half of the steps before a round."""
        number = -(-step // self.explore)
        return 1 <= number <= self.count and number * self.explore - step < self.explore // 2

    def even_rank(self, number: int) -> int:
        """The rank that every layer could have with what is given out up to this round."""
        return self.floor_rank + (self.rank - self.floor_rank) * number // self.count


def planned_rounds(chosen: Hyperparameters, steps: int, held_out: int) -> Rounds | None:
    """None where ranks are not allocated, or cannot be: `not_planned` says why.

    `held_out` examples are there to judge by.
    """
    wish = chosen.rank_allocation
    if wish is None or (wish.gate and not held_out):
        return None
    explore = max(2, round(wish.explore_ratio * steps))
    trial = min(MOST_TRIAL_STEPS, max(1, int(TRIAL_SHARE * steps)))
    if explore * wish.rounds + trial >= steps:
        return None
    return Rounds(
        explore=explore,
        count=wish.rounds,
        trial=trial,
        judged=max(1, int(JUDGED_SHARE * steps * chosen.batch_size)),
        floor_rank=wish.floor_of(chosen.rank),
        rank=chosen.rank,
    )


def not_planned(steps: int, held_out: int) -> str:
    """What people should know who asked for allocation and do not get it."""
    why = (
        "nothing is held out to judge it by; add clips, or set rank_allocation.gate to false"
        if not held_out
        else f"{steps} steps are too few to find out; train for longer"
    )
    return f"rank_allocation is not done and every layer has rank: {why}"
