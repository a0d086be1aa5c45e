"""What a collection found and did."""

from pydantic import Field

from command_api.storage.places import Purpose
from schemas.base import Message

EXAMPLES = 200
"""Keys that an outcome names; the counts are of all."""


class Amount(Message):
    """How many objects, and how many bytes they hold."""

    objects: int = 0
    bytes: int = 0

    def plus(self, size_bytes: int) -> "Amount":
        return Amount(objects=self.objects + 1, bytes=self.bytes + size_bytes)


class Unneeded(Message):
    """An object that nobody needs."""

    key: str
    size_bytes: int
    purpose: Purpose


class Usage(Message):
    """What one organization stores for one purpose, before anything was deleted."""

    organization_id: str
    purpose: Purpose
    objects: int
    bytes: int


class PassedOver(Message):
    """An organization of which nothing was deleted, and why."""

    organization_id: str
    reason: str


class Outcome(Message):
    """Of a dry run: what would go. Otherwise: what is gone."""

    total: Amount = Amount()
    by_purpose: dict[Purpose, Amount] = Field(default_factory=dict)
    keys: tuple[Unneeded, ...] = ()
    """The first of them."""
    spared: int = 0
    """Needed again, or written anew, between look and deletion."""
    passed_over: tuple[PassedOver, ...] = ()
    usage: tuple[Usage, ...] = ()
    swept: dict[str, int] = Field(default_factory=dict)
    """Rows that had served their time, by what they are."""


class Tally:
    """Adds an outcome up."""

    def __init__(self) -> None:
        self.seen = 0
        self.spared = 0
        self.swept: dict[str, int] = {}
        self._gone: dict[Purpose, Amount] = {}
        self._keys: list[Unneeded] = []
        self._usage: dict[tuple[str, Purpose], Amount] = {}
        self._passed_over: list[PassedOver] = []

    def saw(self, organization_id: str, purpose: Purpose, size_bytes: int) -> None:
        self.seen += 1
        place = organization_id, purpose
        self._usage[place] = self._usage.get(place, Amount()).plus(size_bytes)

    def gone(self, key: str, purpose: Purpose, size_bytes: int) -> None:
        self._gone[purpose] = self._gone.get(purpose, Amount()).plus(size_bytes)
        if len(self._keys) < EXAMPLES:
            self._keys.append(Unneeded(key=key, size_bytes=size_bytes, purpose=purpose))

    def passed_over(self, organization_id: str, reason: str) -> None:
        self._passed_over.append(PassedOver(organization_id=organization_id, reason=reason))

    def outcome(self) -> Outcome:
        return Outcome(
            total=Amount(
                objects=sum(amount.objects for amount in self._gone.values()),
                bytes=sum(amount.bytes for amount in self._gone.values()),
            ),
            by_purpose=dict(sorted(self._gone.items())),
            keys=tuple(self._keys),
            spared=self.spared,
            passed_over=tuple(self._passed_over),
            usage=tuple(
                Usage(organization_id=organization, purpose=purpose, objects=found.objects, bytes=found.bytes)
                for (organization, purpose), found in sorted(self._usage.items())
            ),
            swept=self.swept,
        )
