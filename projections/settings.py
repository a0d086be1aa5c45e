"""What the projections process needs to run."""

from pydantic import Field

from schemas.base import Message
from schemas.settings import MetricsSettings, PostgresSettings


class ProjectionsSettings(Message):
    """The read side writes only its own tables."""

    postgres: PostgresSettings
    page_size: int = Field(1000, ge=1)
    poll_seconds: float = Field(1.0, gt=0)
    metrics: MetricsSettings | None = None
    """Without it nothing listens."""
