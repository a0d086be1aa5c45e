"""What an object is there for, read from its key: the grammar of the prefixes in `schemas.objects`."""

import re
from dataclasses import dataclass
from typing import Literal

Purpose = Literal["content", "upload", "checkpoint", "adapter", "log", "validation", "other"]
"""``content`` is what was uploaded, by its hash; ``upload`` what is on its way there."""

_ITEM = r"(?P<item>(?:job|ds|mdl)_[0-9a-f]{32})/attempt-(?P<attempt>[1-9][0-9]{0,17})/."
_PATTERNS: tuple[tuple[Purpose, re.Pattern[str]], ...] = (
    ("content", re.compile(r"objects/sha256/[0-9a-f]{64}\Z")),
    ("upload", re.compile(r"uploads/(?P<upload>upl_[0-9a-f]{32})/[0-9a-f]{64}\Z")),
    ("checkpoint", re.compile(rf"checkpoints/job-{_ITEM}")),
    ("adapter", re.compile(rf"models/finetuned/job-{_ITEM}")),
    ("log", re.compile(rf"logs/job-{_ITEM}")),
    ("validation", re.compile(rf"datasets/processed/{_ITEM}")),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object lies inside its organization."""

    purpose: Purpose
    upload_id: str | None = None
    attempt: tuple[str, int] | None = None
    """Item and attempt that wrote it."""


def place_of(key: str) -> Place:
    """The place that a key names; ``other`` for whatever was not put there by this version of Kinora."""
    _, _, inside = key.partition("/")
    for purpose, pattern in _PATTERNS:
        if match := pattern.match(inside):
            found = match.groupdict()
            item = found.get("item")
            return Place(
                purpose, found.get("upload"), (item, int(found["attempt"])) if item is not None else None
            )
    return Place("other")
