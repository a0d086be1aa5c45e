"""Findings of the auditor: where something derived was not what the log says."""

from typing import ClassVar, Literal

from schemas.events.registry import REGISTRY, Event

Check = Literal["stream", "read_model", "log", "subscriber"]
"""``stream``: EVENTS against the log. ``read_model``: rows of a view against their stream folded again.
``log``: the log itself against its Merkle trees and signed heads. ``subscriber``: what EVENTS dropped to make
room, against what a NATS subscriber had acknowledged.
"""


@REGISTRY.register
class FindingOpened(Event):
    """Looked at twice, something derived differed from the log both times; or the log from what it was."""

    TYPE: ClassVar[str] = "kinora.finding.opened"
    check: Check
    subject: str
    """The stream, or the view; for the log ``heads`` or ``leaves``."""
    about: str
    """The stream of the log whose rows differ, or the subscription; the log's id where all of it is meant.
    For ``leaves`` the organization, or the log's id for events of none.
    """
    detail: str
    """What differs: names, never values."""
    remedy: str
    """What to do, or what is done already."""


@REGISTRY.register
class FindingResolved(Event):
    """Looked at again, it agrees with the log."""

    TYPE: ClassVar[str] = "kinora.finding.resolved"
    detail: str
