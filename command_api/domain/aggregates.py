"""Every aggregate by the prefix of its ids: how to fold a stream without knowing what it is."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from command_api.domain import agent, dataset, finding, job, model, organization, subscription, user
from schemas.events import Event
from schemas.ids import Prefix, id_prefix


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A kind of stream: where it begins, what it decides and what its events make of it."""

    initial: Any
    decide: Callable[[Any, Any], Sequence[Event]]
    evolve: Callable[[Any, Event], Any]

    def fold(self, events: Iterable[Event], state: Any = None) -> Any:
        """The state after `events`, from the beginning or from an earlier state."""
        state = self.initial if state is None else state
        for event in events:
            state = self.evolve(state, event)
        return state


AGGREGATES: dict[Prefix, Aggregate] = {
    Prefix.USER: Aggregate(user.INITIAL, user.decide, user.evolve),
    Prefix.ORGANIZATION: Aggregate(organization.INITIAL, organization.decide, organization.evolve),
    Prefix.DATASET: Aggregate(dataset.INITIAL, dataset.decide, dataset.evolve),
    Prefix.MODEL: Aggregate(model.INITIAL, model.decide, model.evolve),
    Prefix.AGENT: Aggregate(agent.INITIAL, agent.decide, agent.evolve),
    Prefix.FINDING: Aggregate(finding.INITIAL, finding.decide, finding.evolve),
    Prefix.JOB: Aggregate(job.INITIAL, job.decide, job.evolve),
    Prefix.SUBSCRIPTION: Aggregate(subscription.INITIAL, subscription.decide, subscription.evolve),
}


def aggregate_of(stream_id: str) -> Aggregate:
    """The aggregate that a stream belongs to.

    Raises:
        ValueError: when no aggregate has ids like `stream_id`.
    """
    prefix = id_prefix(stream_id)
    if prefix not in AGGREGATES:
        raise ValueError(f"{stream_id} names no stream; ids of streams begin with {', '.join(AGGREGATES)}")
    return AGGREGATES[prefix]
