"""Versions that a subscriber pinned: whatever version was stored, it gets the one that it knows.

The log keeps every event as it was written. Without a pin a client gets exactly that; with one it gets the
event cast to its version, which is convenient and no longer the stored bytes: `storedtype` says so, and only
an event without it can be verified against the log's Merkle tree.
"""

import json
from collections.abc import Iterable, Mapping

from schemas.envelope import split_type
from schemas.errors import KinoraError
from schemas.events import REGISTRY, Registry

Pins = Mapping[str, int]
"""Version by event type, such as ``{"kinora.job.progressed": 1}``."""


class UnknownVersion(KinoraError):
    """A pinned version that never was."""

    code = "unknown_event_version"


def pins_of(names: Iterable[str], registry: Registry = REGISTRY) -> dict[str, int]:
    """Pins from names such as ``kinora.job.progressed.v1``.

    Raises:
        UnknownVersion: naming what there is instead.
    """
    pins: dict[str, int] = {}
    for name in names:
        try:
            event_type, version = split_type(name)
        except ValueError:
            event_type, version = name, 0
        newest = registry.version_of(event_type)
        if newest is None:
            raise UnknownVersion(
                f"{name[:100]!r} is no event version; pin one such as kinora.job.progressed.v1"
            )
        if not 1 <= version <= newest:
            raise UnknownVersion(f"{name!r} does not exist; pin one of {event_type}.v1 to .v{newest}")
        pins[event_type] = version
    return pins


def pinned(event: bytes, event_type: str, pins: Pins, registry: Registry = REGISTRY) -> bytes:
    """An event, stored or public, as the pins want it; the very same bytes where they want nothing else.

    Raises:
        UnknownEventType: when there is no cast to that version.
    """
    wanted = pins.get(event_type)
    if wanted is None:
        return event
    fields = json.loads(event)
    stored = fields["type"]
    name, version = split_type(stored)
    if version == wanted:
        return event
    data = registry.recast(name, version, fields["data"], wanted)
    cast = {**fields, "type": f"{name}.v{wanted}", "storedtype": stored, "data": data}
    return json.dumps(cast, separators=(",", ":"), ensure_ascii=False).encode()
