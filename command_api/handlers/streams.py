"""What handlers read: folded streams, kept from one command to the next and fenced by organization."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress

from command_api.domain.aggregates import Aggregate
from command_api.domain.errors import NotFound
from command_api.eventlog.log import EventLog
from command_api.eventlog.reader import LookedUp
from command_api.handlers.base import Context, Loaded
from schemas.envelope import Recorded
from schemas.events import Event
from schemas.ids import Prefix, id_prefix

CACHED_STREAMS = 4096
PAGE_EVENTS = 500
"""Read and folded at once, in about 10 ms: nobody waits longer for the history of somebody else's stream."""
Place = tuple[str | None, str | None]
"""Organization and workspace."""


class MustWait(Exception):
    """The command reads a stream that this transaction already writes: it belongs into the next one."""


class Unfinished(Exception):
    """The command reads a long stream, and a page of it was read: others get their turn now."""


class FoldCache:
    """Folded states by stream and version, so that a load reads only what is new. Not for several threads."""

    def __init__(
        self, log: EventLog, aggregates: Mapping[Prefix, Aggregate], size: int = CACHED_STREAMS
    ) -> None:
        self._log = log
        self._aggregates = aggregates
        self._size = size
        self._kept: OrderedDict[str, Loaded] = OrderedDict()
        self._partly: set[str] = set()
        """Kept, and known to go on: nothing can be decided on these."""
        self._left = PAGE_EVENTS

    def begin_turn(self) -> None:
        """From here on another page may be read."""
        self._left = PAGE_EVENTS

    def load(self, stream_id: str) -> Loaded:
        """The stream as the log has it now.

        Raises:
            Unfinished: this turn's page is used up. What was read is kept, so each turn gets further.
        """
        if self._left <= 0:
            raise Unfinished
        loaded = self._last(stream_id)
        tail = self._log.read_stream(stream_id, loaded.version, PAGE_EVENTS)
        self._left -= len(tail)
        loaded = self._advanced(stream_id, loaded, tail)
        if len(tail) == PAGE_EVENTS:
            self._partly.add(stream_id)
            raise Unfinished
        return loaded

    def kept(self, stream_id: str) -> Loaded | None:
        """The stream as it was when this process last looked at it or wrote it; None if not at all of it."""
        return None if stream_id in self._partly else self._kept.get(stream_id)

    def versions(self, stream_ids: Iterable[str]) -> dict[str, int]:
        """How far each of the streams is known; what names no stream is left out."""
        versions: dict[str, int] = {}
        for stream_id in stream_ids:
            with suppress(NotFound):
                versions[stream_id] = self._last(stream_id).version
        return versions

    def advance(self, found: LookedUp) -> dict[str, Loaded | None]:
        """The streams with what came after the version known; None for one that was not read to its end.

        One that cannot be read is left out: whoever needs that one loads it and gets the error, alone.
        """
        advanced: dict[str, Loaded | None] = {}
        for stream_id, tail in found.tails.items():
            with suppress(Exception):
                events = [raw.recorded() for raw in tail]
                loaded = self._advanced(stream_id, self._last(stream_id), events)
                advanced[stream_id] = loaded
                if stream_id in found.unread:
                    self._partly.add(stream_id)
                    advanced[stream_id] = None
        return advanced

    def _last(self, stream_id: str) -> Loaded:
        return self._kept.get(stream_id) or Loaded(self._aggregate(stream_id).initial, 0)

    def _advanced(self, stream_id: str, loaded: Loaded, tail: Sequence[Recorded]) -> Loaded:
        if tail:
            first = tail[0].metadata if loaded.version == 0 else loaded
            place = first.organization_id, first.workspace_id
            loaded = self.evolve(stream_id, loaded, [recorded.event for recorded in tail], place)
        if loaded.version:
            self.keep(stream_id, loaded)
        return loaded

    def evolve(self, stream_id: str, loaded: Loaded, events: Iterable[Event], place: Place) -> Loaded:
        """The stream with these events after it."""
        aggregate = self._aggregate(stream_id)
        state, version = loaded.state, loaded.version
        for event in events:
            state, version = aggregate.evolve(state, event), version + 1
        return Loaded(state, version, *place)

    def keep(self, stream_id: str, loaded: Loaded) -> None:
        """Remember a committed fold; the one unused for longest makes room."""
        self._kept[stream_id] = loaded
        self._kept.move_to_end(stream_id)
        self._partly.discard(stream_id)
        if len(self._kept) > self._size:
            oldest, _ = self._kept.popitem(last=False)
            self._partly.discard(oldest)

    def _aggregate(self, stream_id: str) -> Aggregate:
        try:
            return self._aggregates[id_prefix(stream_id)]
        except (KeyError, ValueError):
            raise NotFound(f"{stream_id} names nothing that has a history; check the id") from None


class PendingStreams:
    """The streams as a transaction in the making has them: the log's, and what was decided before."""

    def __init__(
        self,
        cache: FoldCache,
        barred: AbstractSet[str] = frozenset(),
        fresh: dict[str, Loaded | None] | None = None,
    ) -> None:
        self._cache = cache
        self._fresh = {} if fresh is None else fresh
        """Read not long ago: after every request of the transaction was handed in. None: not to the end."""
        self._barred = barred
        self._loaded: dict[str, Loaded] = {}
        self._written: set[str] = set()

    def load(self, stream_id: str) -> Loaded:
        if stream_id in self._barred:
            raise MustWait
        loaded = self._loaded.get(stream_id)
        if loaded is None:
            loaded = self._fresh[stream_id] if stream_id in self._fresh else self._cache.load(stream_id)
            if loaded is None:
                raise Unfinished
            self._loaded[stream_id] = loaded
        return loaded

    def write(self, stream_id: str, events: Sequence[Event], place: Place) -> None:
        self._loaded[stream_id] = self._cache.evolve(stream_id, self.load(stream_id), events, place)
        self._written.add(stream_id)

    def fork(self) -> "PendingStreams":
        """A copy for one request, which is dropped when the request is refused."""
        copy = PendingStreams(self._cache, self._barred, self._fresh)
        copy._loaded = dict(self._loaded)
        copy._written = set(self._written)
        return copy

    @property
    def is_written_throughout(self) -> bool:
        """Whether events are added to every stream that was read."""
        return self._loaded.keys() <= self._written

    @property
    def written(self) -> AbstractSet[str]:
        return self._written

    def committed(self) -> None:
        """Remember what was written."""
        for stream_id in self._written:
            self._cache.keep(stream_id, self._loaded[stream_id])
            self._fresh[stream_id] = self._loaded[stream_id]


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
