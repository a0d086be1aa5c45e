"""Who a request speaks for, once its access token was verified."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """A person in one organization and workspace."""

    user_id: str
    organization_id: str
    workspace_id: str
    scopes: tuple[str, ...]
    expires_at: float
    """Seconds since the epoch."""
