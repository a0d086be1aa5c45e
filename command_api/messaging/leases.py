"""Who was heard when: the leases of attempts and agents, as a pure table with the clock as an argument.

Leases are not in the log: after a start or an outage nobody knows who was heard meanwhile, so `restart`
gives everybody a whole period before anything may expire.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class Held:
    """Which agent holds which attempt of an item."""

    item_id: str
    attempt: int
    agent_id: str


class Leases:
    """Times are seconds of one monotonic clock, given by the caller."""

    def __init__(self, period: float) -> None:
        self.period = period
        self._items: dict[Held, float] = {}
        self._agents: dict[str, float] = {}

    def sync(self, held: Collection[Held], agents: Collection[str], now: float) -> None:
        """Take over who holds what and which agents count as online; newcomers get a whole period."""
        self._items = _kept(self._items, held, now + self.period)
        self._agents = _kept(self._agents, agents, now + self.period)

    def heard(self, agent_id: str, held: Held | None, now: float) -> float:
        """An agent spoke, and of what it holds; returns when its lease ends."""
        until = now + self.period
        self._agents[agent_id] = until
        if held is not None and held.agent_id == agent_id:
            self._items[held] = until
        return until

    def restart(self, now: float) -> None:
        """Nobody could be heard until now."""
        until = now + self.period
        self._items = dict.fromkeys(self._items, until)
        self._agents = dict.fromkeys(self._agents, until)

    def expired(self, now: float) -> list[Held]:
        """Attempts whose agent said nothing of them for a whole period."""
        return [held for held, until in self._items.items() if until <= now]

    def silent(self, now: float) -> list[str]:
        """Agents that said nothing at all for a whole period."""
        return [agent_id for agent_id, until in self._agents.items() if until <= now]


K = TypeVar("K")


def _kept(times: Mapping[K, float], present: Collection[K], newcomers: float) -> dict[K, float]:
    return {key: times.get(key, newcomers) for key in present}
