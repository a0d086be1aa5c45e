"""Identifiers: a readable prefix and a UUIDv7 (RFC 9562 §5.7), such as ``job_0192f0c1…``.

The same 32 hexadecimal digits are the aggregate's ``originator_id`` in the log, so a stream is found
from its id without a look-up. Ids contain only characters that are safe in a NATS subject token,
a URL path and an object key.
"""

import re
import secrets
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import Annotated
from uuid import UUID, uuid5

from pydantic import StringConstraints


class Prefix(StrEnum):
    """The kind of thing an id names."""

    USER = "usr"
    ORGANIZATION = "org"
    WORKSPACE = "ws"
    DATASET = "ds"
    MODEL = "mdl"
    AGENT = "agt"
    JOB = "job"
    SUBSCRIPTION = "sub"
    EVENT = "evt"
    COMMAND = "cmd"
    REQUEST = "req"
    DELIVERY = "dlv"
    REDELIVERY = "rdl"
    UPLOAD = "upl"
    FINDING = "fnd"


ID_PATTERN = re.compile(r"^([a-z]{2,4})_([0-9a-f]{32})\Z")

UserId = Annotated[str, StringConstraints(pattern=r"^usr_[0-9a-f]{32}$")]
OrganizationId = Annotated[str, StringConstraints(pattern=r"^org_[0-9a-f]{32}$")]
WorkspaceId = Annotated[str, StringConstraints(pattern=r"^ws_[0-9a-f]{32}$")]
DatasetId = Annotated[str, StringConstraints(pattern=r"^ds_[0-9a-f]{32}$")]
ModelId = Annotated[str, StringConstraints(pattern=r"^mdl_[0-9a-f]{32}$")]
AgentId = Annotated[str, StringConstraints(pattern=r"^agt_[0-9a-f]{32}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job_[0-9a-f]{32}$")]
SubscriptionId = Annotated[str, StringConstraints(pattern=r"^sub_[0-9a-f]{32}$")]
DeliveryId = Annotated[str, StringConstraints(pattern=r"^dlv_[0-9a-f]{32}$")]
FindingId = Annotated[str, StringConstraints(pattern=r"^fnd_[0-9a-f]{32}$")]
EventId = Annotated[str, StringConstraints(pattern=r"^evt_[0-9a-f]{32}$")]
WorkItemId = Annotated[str, StringConstraints(pattern=r"^(job|ds|mdl)_[0-9a-f]{32}$")]
"""What an agent can be given: a job to train, or a dataset or model to validate."""
StreamId = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,4}_[0-9a-f]{32}$")]
"""Of any aggregate: which there are may grow, and whoever reads events has to take new ones."""
NatsPublicKey = Annotated[str, StringConstraints(pattern=r"^U[A-Z2-7]{55}$")]
"""A NATS user, as NATS itself names it."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


_REMEMBERED = 16384
"""Ids whose parts are kept, because the same few streams are asked for all the time."""


class Ticks:
    """Unix milliseconds and a counter within each, that only go forward however the wall clock jumps."""

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        """60 bits: 48 of milliseconds, 12 of counter; greater than all before."""
        now = (self._clock_ns() // 1_000_000) << 12 | secrets.randbits(11)
        with self._lock:
            self._last = max(now, self._last + 1)
            return self._last


_TICKS = Ticks()


def uuid7(ticks: Ticks = _TICKS) -> UUID:
    """A UUID (RFC 9562 §5.7, counter by §6.2) greater than every earlier one of this process.

    48 bits of Unix milliseconds, 12 of counter, 62 random ones.
    """
    tick = ticks.next()
    milliseconds, counter = tick >> 12, tick & 0xFFF
    return UUID(int=milliseconds << 80 | 0x7 << 76 | counter << 64 | 0x2 << 62 | secrets.randbits(62))


def new_id(prefix: Prefix) -> str:
    """A fresh id with this prefix."""
    return f"{prefix}_{uuid7().hex}"


def derived_id(prefix: Prefix, parent: str, name: str) -> str:
    """The id that `name` under `parent` always has, so that a repeated policy makes the same thing."""
    return f"{prefix}_{uuid5(id_uuid(parent), name).hex}"


@lru_cache(_REMEMBERED)
def id_uuid(identifier: str) -> UUID:
    """The UUID inside an id.

    Raises:
        ValueError: when `identifier` is not a prefix and 32 hexadecimal digits.
    """
    match = ID_PATTERN.fullmatch(identifier)
    if match is None:
        raise ValueError(
            f"{identifier!r} is not an id; expected a prefix and 32 hexadecimal digits, like job_0192…"
        )
    return UUID(hex=match.group(2))


@lru_cache(_REMEMBERED)
def id_prefix(identifier: str) -> Prefix:
    """The kind of thing that `identifier` names.

    Raises:
        ValueError: when it is not an id or its prefix is unknown.
    """
    match = ID_PATTERN.fullmatch(identifier)
    if match is None:
        raise ValueError(
            f"{identifier!r} is not an id; expected a prefix and 32 hexadecimal digits, like job_0192…"
        )
    return Prefix(match.group(1))
