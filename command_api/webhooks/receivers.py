"""Where to deliver to: every webhook there is, folded from its events."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError

from command_api.eventlog.errors import LogTooNew
from command_api.eventlog.log import EventLog
from command_api.eventlog.reader import RawEvent
from schemas.events import UnknownEventType
from schemas.events import subscription as events
from schemas.subscriptions import EventFilter

PAGE = 1000
TYPES = (
    events.SubscriptionCreated.TYPE,
    events.SubscriptionDisabled.TYPE,
    events.SubscriptionEnabled.TYPE,
    events.SubscriptionDeleted.TYPE,
)


@dataclass(frozen=True, slots=True)
class Receiver:
    """One webhook."""

    subscription_id: str
    organization_id: str
    workspace_id: str | None
    url: str
    filter: EventFilter
    after: int
    pinned: Mapping[str, int]
    is_active: bool = True
    enabled_version: int = 1
    """Version of its stream when it was last made to go on."""

    def takes(self, organization_id: str, event_type: str, stream_id: str, workspace_id: str | None) -> bool:
        return organization_id == self.organization_id and self.filter.takes(
            event_type, stream_id, workspace_id
        )


class Receivers:
    """All webhooks that were not deleted, as of the last `catch_up`."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._seen = 0
        self._found: dict[str, Receiver] = {}

    @property
    def found(self) -> Mapping[str, Receiver]:
        return self._found

    async def catch_up(self, head: int) -> None:
        """Fold what the log holds up to `head`.

        Raises:
            LogUnavailable: when the database does not answer.
            LogTooNew: at an event that this release cannot read.
        """
        while self._seen < head:
            page = await asyncio.to_thread(self._log.read_all, self._seen, PAGE, TYPES)
            for raw in page:
                self._fold(raw)
            self._seen = page[-1].position if len(page) == PAGE else max(self._seen, head)

    def _fold(self, raw: RawEvent) -> None:
        try:
            recorded = raw.recorded()
        except (UnknownEventType, ValidationError) as error:
            raise LogTooNew(
                f"the {raw.type} of {raw.stream_id} at position {raw.position} cannot be read here:"
                f" {str(error).splitlines()[0]}"
            ) from error
        known = self._found.get(raw.stream_id)
        match recorded.event:
            case events.SubscriptionCreated(kind="webhook", url=str(url)) as created:
                self._found[raw.stream_id] = Receiver(
                    raw.stream_id,
                    raw.organization_id or "",
                    raw.workspace_id,
                    url,
                    created.filter,
                    created.after,
                    created.pinned,
                    enabled_version=raw.version,
                )
            case events.SubscriptionDisabled() if known is not None:
                self._found[raw.stream_id] = replace(known, is_active=False)
            case events.SubscriptionEnabled() if known is not None:
                self._found[raw.stream_id] = replace(known, is_active=True, enabled_version=raw.version)
            case events.SubscriptionDeleted():
                self._found.pop(raw.stream_id, None)
            case _:
                return
