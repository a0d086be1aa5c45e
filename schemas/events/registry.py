"""The explicit type registry: stable dotted names instead of import paths, and upcasters between versions."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from schemas.base import Message
from schemas.errors import KinoraError

Payload = dict[str, Any]
Upcaster = Callable[[Payload], Payload]


class Event(Message):
    """A fact, in the past tense. A published version never changes: a change is a new one and an upcaster."""

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
        self._upcasters: dict[tuple[str, int], Upcaster] = {}

    def register(self, cls: E) -> E:
        """Class decorator that makes an event known under its ``TYPE``."""
        if cls.TYPE in self._types:
            raise ValueError(f"event type {cls.TYPE} is registered twice")
        self._types[cls.TYPE] = cls
        return cls

    def upcaster(self, event_type: str, from_version: int) -> Callable[[Upcaster], Upcaster]:
        """Decorator for the function that turns a payload of `from_version` into the next version."""

        def add(function: Upcaster) -> Upcaster:
            key = (event_type, from_version)
            if key in self._upcasters:
                raise ValueError(f"upcaster for {event_type} v{from_version} is registered twice")
            self._upcasters[key] = function
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
        while version < cls.VERSION:
            step = self._upcasters.get((event_type, version))
            if step is None:
                raise UnknownEventType(f"no upcaster from {event_type} v{version} to v{version + 1}")
            payload, version = step(payload), version + 1
        return cls.model_validate(payload)

    @property
    def types(self) -> tuple[type[Event], ...]:
        """Every registered event class, sorted by type."""
        return tuple(self._types[name] for name in sorted(self._types))


REGISTRY = Registry()
