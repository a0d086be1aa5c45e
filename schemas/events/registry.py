"""The explicit type registry: stable dotted names instead of import paths, and casts between versions."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from schemas.base import Message
from schemas.errors import KinoraError

Payload = dict[str, Any]
Cast = Callable[[Payload], Payload]
"""Turns a payload of one version into that of a neighbouring one; pure, and gives a new dictionary."""


class Event(Message):
    """A fact, in the past tense.

    A released version only ever gains optional fields (`schemas.compatibility`); any other change is a new
    version with an upcaster and a downcaster.
    """

    TYPE: ClassVar[str]
    VERSION: ClassVar[int] = 1


E = TypeVar("E", bound=type[Event])


class UnknownEventType(KinoraError):
    """The log holds a type or version that this code does not know."""

    code = "unknown_event_type"


class Registry:
    """Event types by dotted name; older versions are brought up to the newest one step at a time."""

    def __init__(self) -> None:
        self._types: dict[str, type[Event]] = {}
        self._casts: dict[tuple[str, int, int], Cast] = {}

    def register(self, cls: E) -> E:
        """Class decorator that makes an event known under its ``TYPE``."""
        if cls.TYPE in self._types:
            raise ValueError(f"event type {cls.TYPE} is registered twice")
        self._types[cls.TYPE] = cls
        return cls

    def upcaster(self, event_type: str, from_version: int) -> Callable[[Cast], Cast]:
        """Decorator for the function that turns a payload of `from_version` into the next version."""
        return self._cast(event_type, from_version, from_version + 1)

    def downcaster(self, event_type: str, from_version: int) -> Callable[[Cast], Cast]:
        """Decorator for the function that turns a payload of `from_version` into the version before.

        Subscribers who pinned that one go on reading it; what they did not know of is left out.
        """
        return self._cast(event_type, from_version, from_version - 1)

    def _cast(self, event_type: str, version: int, to: int) -> Callable[[Cast], Cast]:
        def add(function: Cast) -> Cast:
            if (event_type, version, to) in self._casts:
                raise ValueError(f"the cast of {event_type} from v{version} to v{to} is registered twice")
            self._casts[event_type, version, to] = function
            return function

        return add

    def decode(self, event_type: str, version: int, payload: Payload) -> Event:
        """The event that a stored payload means today.

        Raises:
            UnknownEventType: when the type, or the way from `version` to today's, is unknown.
        """
        cls = self._types.get(event_type)
        if cls is None or version > cls.VERSION:
            raise UnknownEventType(f"event type {event_type} v{version} is not known here; upgrade Kinora")
        return cls.model_validate(self.recast(event_type, version, payload, cls.VERSION))

    def recast(self, event_type: str, version: int, payload: Payload, wanted: int) -> Payload:
        """The payload as another version has it, one step at a time.

        Raises:
            UnknownEventType: when a step on the way is unknown.
        """
        while version != wanted:
            to = version + (1 if version < wanted else -1)
            step = self._casts.get((event_type, version, to))
            if step is None:
                caster = "upcaster" if to > version else "downcaster"
                raise UnknownEventType(f"no {caster} from {event_type} v{version} to v{to}")
            payload, version = step(payload), to
        return payload

    def version_of(self, event_type: str) -> int | None:
        """Today's version of a type; None when it is unknown."""
        cls = self._types.get(event_type)
        return None if cls is None else cls.VERSION

    @property
    def casts(self) -> frozenset[tuple[str, int, int]]:
        """Every registered step: type, version, neighbouring version."""
        return frozenset(self._casts)

    @property
    def types(self) -> tuple[type[Event], ...]:
        """Every registered event class, sorted by type."""
        return tuple(self._types[name] for name in sorted(self._types))


REGISTRY = Registry()
