"""What the projections process needs to run."""

from pydantic import Field

from schemas.base import Message
from schemas.settings import PostgresSettings


class ProjectionsSettings(Message):
    """The read side writes only its own tables."""

    postgres: PostgresSettings
    page_size: int = Field(1000, ge=1)
    poll_seconds: float = Field(1.0, gt=0)
