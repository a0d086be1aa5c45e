"""What handlers read: folded streams, kept from one command to the next and fenced by organization."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from command_api.domain.aggregates import Aggregate
from command_api.domain.errors import NotFound
from command_api.eventlog.log import EventLog
from command_api.handlers.base import Context, Loaded
from schemas.events import Event
from schemas.ids import Prefix, id_prefix

CACHED_STREAMS = 4096


class MustWait(Exception):
    """The command reads a stream that this transaction already writes: it belongs into the next one."""


class FoldCache:
    """Folded states by stream and version, so that a load reads only what is new. Not for several threads."""

    def __init__(
        self, log: EventLog, aggregates: Mapping[Prefix, Aggregate], size: int = CACHED_STREAMS
    ) -> None:
        self._log = log
        self._aggregates = aggregates
        self._size = size
        self._kept: OrderedDict[str, Loaded] = OrderedDict()

    def load(self, stream_id: str) -> Loaded:
        """The stream as the log has it now."""
        loaded = self._kept.get(stream_id) or Loaded(self._aggregate(stream_id).initial, 0)
        tail = self._log.read_stream(stream_id, loaded.version)
        if tail:
            first = tail[0].metadata
            if loaded.version == 0:
                loaded = replace(
                    loaded, organization_id=first.organization_id, workspace_id=first.workspace_id
                )
            loaded = self.evolve(stream_id, loaded, [recorded.event for recorded in tail])
        if loaded.version:
            self.keep(stream_id, loaded)
        return loaded

    def evolve(self, stream_id: str, loaded: Loaded, events: Iterable[Event]) -> Loaded:
        """The stream with these events after it."""
        aggregate = self._aggregate(stream_id)
        state, version = loaded.state, loaded.version
        for event in events:
            state, version = aggregate.evolve(state, event), version + 1
        return replace(loaded, state=state, version=version)

    def keep(self, stream_id: str, loaded: Loaded) -> None:
        """Remember a committed fold; the one unused for longest makes room."""
        self._kept[stream_id] = loaded
        self._kept.move_to_end(stream_id)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def _aggregate(self, stream_id: str) -> Aggregate:
        try:
            return self._aggregates[id_prefix(stream_id)]
        except (KeyError, ValueError):
            raise NotFound(f"{stream_id} names nothing that has a history; check the id") from None


class PendingStreams:
    """The streams as a transaction in the making has them: the log's, and what was decided before."""

    def __init__(self, cache: FoldCache, barred: AbstractSet[str] = frozenset()) -> None:
        self._cache = cache
        self._barred = barred
        self._loaded: dict[str, Loaded] = {}
        self._written: set[str] = set()

    def load(self, stream_id: str) -> Loaded:
        if stream_id in self._barred:
            raise MustWait
        if stream_id not in self._loaded:
            self._loaded[stream_id] = self._cache.load(stream_id)
        return self._loaded[stream_id]

    def write(self, stream_id: str, events: Sequence[Event], place: tuple[str | None, str | None]) -> None:
        organization_id, workspace_id = place
        loaded = self._cache.evolve(stream_id, self.load(stream_id), events)
        self._loaded[stream_id] = replace(loaded, organization_id=organization_id, workspace_id=workspace_id)
        self._written.add(stream_id)

    def fork(self) -> "PendingStreams":
        """A copy for one request, which is dropped when the request is refused."""
        copy = PendingStreams(self._cache, self._barred)
        copy._loaded = dict(self._loaded)
        copy._written = set(self._written)
        return copy

    @property
    def written(self) -> AbstractSet[str]:
        return self._written

    def committed(self) -> None:
        """Remember what was written."""
        for stream_id in self._written:
            self._cache.keep(stream_id, self._loaded[stream_id])


class VisibleStreams:
    """The streams that one context may see; foreign ones look exactly like missing ones."""

    def __init__(self, pending: PendingStreams, context: Context) -> None:
        self._pending = pending
        self._context = context

    def load(self, stream_id: str) -> Loaded:
        loaded = self._pending.load(stream_id)
        if loaded.version and not self._may_see(stream_id, loaded):
            raise NotFound(f"{stream_id} does not exist; check the id and the organization")
        return loaded

    def _may_see(self, stream_id: str, loaded: Loaded) -> bool:
        if self._context.is_system:
            return True
        if loaded.organization_id is None:
            return stream_id == self._context.actor
        return loaded.organization_id == self._context.organization_id
