"""How the rows of one optimizer step are dealt to processes: a pure function, so that all of them agree.

Free of torch.
"""

from collections.abc import Sequence

Part = tuple[int, ...]
"""Places of samples in their step that share a forward pass."""


def dealt(
    rows: Sequence[Sequence[int]], lengths: Sequence[int], processes: int
) -> tuple[tuple[Part, ...], ...]:
    """The parts of each process, as places: samples are numbered through all rows of the step.

    A row is halved where that lets every process compute: until the rows are a multiple of the processes, or
    nothing is left to halve. Then the longest goes first, each to the process that has the fewest tokens.
    With fewer samples than processes, some have nothing to do.

    Args:
        rows: samples by forward pass.
        lengths: tokens by sample; one process does without.
    """
    parts: list[Part] = []
    for row in rows:
        first = parts[-1][-1] + 1 if parts else 0
        parts.append(tuple(range(first, first + len(row))))
    if processes == 1:
        return (tuple(parts),)
    cost = [lengths[sample] for row in rows for sample in row]

    def tokens(part: Part) -> int:
        return sum(cost[place] for place in part)

    while len(parts) % processes:
        longest = max(parts, key=lambda part: (len(part) > 1, tokens(part), -part[0]))
        if len(longest) == 1:
            break
        where = parts.index(longest)
        parts[where : where + 1] = _halves(longest, cost)
    loads = [0] * processes
    hands: list[list[Part]] = [[] for _ in range(processes)]
    for part in sorted(parts, key=lambda part: (-tokens(part), part[0])):
        least = loads.index(min(loads))
        loads[least] += tokens(part)
        hands[least].append(part)
    return tuple(tuple(sorted(hand)) for hand in hands)


def _halves(part: Part, cost: Sequence[int]) -> tuple[Part, Part]:
    """Two parts that keep the order, as equal in tokens as that allows."""
    whole = sum(cost[place] for place in part)
    taken, best, cut = 0, whole, 1
    for number in range(1, len(part)):
        taken += cost[part[number - 1]]
        if abs(whole - 2 * taken) < best:
            best, cut = abs(whole - 2 * taken), number
    return part[:cut], part[cut:]
