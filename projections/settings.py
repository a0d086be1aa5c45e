"""What the projections process needs to run."""

import os

from pydantic import Field

from schemas.base import Message
from schemas.settings import MetricsSettings, PostgresSettings


class ProjectionsSettings(Message):
    """The read side writes only its own tables."""

    postgres: PostgresSettings
    page_size: int = Field(1000, ge=1)
    poll_seconds: float = Field(1.0, gt=0)
    rebuild_processes: int = Field(default_factory=lambda: min(2, os.cpu_count() or 1), ge=1)
    """Processes that fill the tables of a rebuild, of a log that is long enough to be worth it."""
    rebuild_slice_events: int = Field(20_000, ge=1)
    """Events that such a process folds in memory at a time."""
    metrics: MetricsSettings | None = None
    """Without it nothing listens."""
