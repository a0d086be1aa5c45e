"""Given events, when a command, then events: the words that domain tests are written in."""

from dataclasses import dataclass
from typing import Any

import pytest

from command_api.domain.aggregates import Aggregate
from command_api.domain.errors import Refused
from schemas.commands import Command
from schemas.events import Event


@dataclass(frozen=True)
class When:
    """A command about to be decided in a state."""

    aggregate: Aggregate
    state: Any
    command: Command

    def made(self) -> list[Event]:
        """The events that it makes, which can be folded."""
        events = list(self.aggregate.decide(self.state, self.command))
        self.aggregate.fold(events, self.state)
        return events

    def then(self, *expected: Event) -> None:
        """It makes exactly these events, and they can be folded."""
        assert self.made() == list(expected)

    def then_nothing(self) -> None:
        """It is a repeat, or comes too late to matter."""
        self.then()

    def then_state(self) -> Any:
        """It is carried out; this is the state afterwards."""
        return self.aggregate.fold(self.aggregate.decide(self.state, self.command), self.state)

    def then_refused(self, code: str) -> Refused:
        """It is refused for this reason."""
        refused = self.then_refused_any()
        assert refused.code == code
        return refused

    def then_refused_any(self) -> Refused:
        """It is refused, for whatever reason."""
        with pytest.raises(Refused) as caught:
            self.aggregate.decide(self.state, self.command)
        return caught.value


@dataclass(frozen=True)
class Given:
    """A stream as it is so far."""

    aggregate: Aggregate
    events: tuple[Event, ...]

    @property
    def state(self) -> Any:
        return self.aggregate.fold(self.events)

    def when(self, command: Command) -> When:
        return When(self.aggregate, self.state, command)


@dataclass(frozen=True)
class Spec:
    """The behaviour of one aggregate."""

    aggregate: Aggregate

    def given(self, *events: Event) -> Given:
        return Given(self.aggregate, events)
