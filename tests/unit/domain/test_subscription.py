from datetime import UTC, datetime

import pytest

from command_api.domain.aggregates import AGGREGATES
from schemas.commands.subscription import (
    CreateSubscription,
    DeleteSubscription,
    DisableSubscription,
    EnableSubscription,
    IssueSubscriptionCredentials,
    RotateSubscriptionSecret,
)
from schemas.events.subscription import (
    SubscriptionCreated,
    SubscriptionCredentialsIssued,
    SubscriptionDeleted,
    SubscriptionDisabled,
    SubscriptionEnabled,
    SubscriptionSecretRotated,
)
from schemas.ids import Prefix
from schemas.subscriptions import EventFilter
from tests.unit.domain.samples import JOB, USER, identifier
from tests.unit.domain.spec import Spec

subscription = Spec(AGGREGATES[Prefix.SUBSCRIPTION])
ID = identifier("sub")
TOMORROW = datetime(2026, 11, 22, tzinfo=UTC)
KEY, OTHER_KEY = "U" + "A" * 55, "U" + "B" * 55

WEBHOOK = CreateSubscription(
    subscription_id=ID,
    name="chat",
    owner_id=USER,
    kind="webhook",
    filter=EventFilter(stream_id=JOB),
    after=7,
    pinned={"kinora.job.succeeded": 1},
    url="https://hooks.example.org/kinora",
)
HOOKED = SubscriptionCreated(
    name="chat",
    owner_id=USER,
    kind="webhook",
    filter=EventFilter(stream_id=JOB),
    after=7,
    pinned={"kinora.job.succeeded": 1},
    url="https://hooks.example.org/kinora",
)
NATS = CreateSubscription(
    subscription_id=ID,
    name="warehouse",
    owner_id=USER,
    kind="nats",
    filter=EventFilter(),
    after=0,
    pinned={},
    public_key=KEY,
    expires_at=TOMORROW,
)
SUBSCRIBED = SubscriptionCreated(
    name="warehouse", owner_id=USER, kind="nats", filter=EventFilter(), after=0, pinned={}
)
ISSUED = SubscriptionCredentialsIssued(public_key=KEY, expires_at=TOMORROW, former_void=False)
STOP = DisableSubscription(subscription_id=ID, reason="requested")
STOPPED = SubscriptionDisabled(reason="requested")
GO_ON = EnableSubscription(subscription_id=ID)
DELETE = DeleteSubscription(subscription_id=ID)


def test_a_webhook_is_made_with_its_address() -> None:
    subscription.given().when(WEBHOOK).then(HOOKED)
    subscription.given(HOOKED).when(WEBHOOK).then_refused("subscription_exists")


def test_a_nats_subscriber_begins_with_credentials() -> None:
    subscription.given().when(NATS).then(SUBSCRIBED, ISSUED)
    bare = NATS.model_copy(update={"public_key": None})
    subscription.given().when(bare).then_refused("invalid")


def test_new_credentials_void_the_former_ones_unless_they_are_kept() -> None:
    for keep in (False, True):
        command = IssueSubscriptionCredentials(
            subscription_id=ID, public_key=OTHER_KEY, expires_at=TOMORROW, keep_former=keep
        )
        again = SubscriptionCredentialsIssued(public_key=OTHER_KEY, expires_at=TOMORROW, former_void=not keep)
        subscription.given(SUBSCRIBED, ISSUED).when(command).then(again)
        subscription.given(HOOKED).when(command).then_refused("subscription_of_other_kind")


def test_only_webhooks_rest_and_sign() -> None:
    subscription.given(HOOKED).when(STOP).then(STOPPED)
    subscription.given(HOOKED, STOPPED).when(STOP).then_nothing()
    subscription.given(HOOKED, STOPPED).when(GO_ON).then(SubscriptionEnabled())
    subscription.given(HOOKED).when(GO_ON).then_nothing()
    rotate = RotateSubscriptionSecret(subscription_id=ID, former_until=TOMORROW)
    subscription.given(HOOKED, STOPPED).when(rotate).then(SubscriptionSecretRotated(former_until=TOMORROW))
    for command in (STOP, GO_ON, rotate):
        subscription.given(SUBSCRIBED, ISSUED).when(command).then_refused("subscription_of_other_kind")


def test_the_end_is_for_good() -> None:
    subscription.given(HOOKED).when(DELETE).then(SubscriptionDeleted())
    subscription.given(HOOKED, STOPPED).when(DELETE).then(SubscriptionDeleted())
    subscription.given(HOOKED, SubscriptionDeleted()).when(DELETE).then_nothing()
    subscription.given(HOOKED, SubscriptionDeleted()).when(GO_ON).then_refused("not_found")
    subscription.given().when(DELETE).then_refused("not_found")


@pytest.mark.parametrize(
    ("changes", "pointer", "says"),
    [
        ({"filter": EventFilter(types=("kinora.job.succeded",))}, "/filter/types/0", "kinora.job.succeeded"),
        ({"filter": EventFilter(types=("kinora.user.logged_in",))}, "/filter/types/0", "own stream"),
        ({"pinned": {"kinora.job.won": 1}}, "/pinned/kinora.job.won", "there is no event type"),
        ({"pinned": {"kinora.job.succeeded": 9}}, "/pinned/kinora.job.succeeded", "no version 9"),
        ({"url": None}, "/url", "needs the url"),
        ({"url": "gopher://example.org"}, "/url", "https://host/path"),
        ({"url": "https://"}, "/url", "https://host/path"),
        ({"url": "https://[::1"}, "/url", "no address"),
        ({"url": "https://me:word@example.org/"}, "/url", "check the signature"),
        ({"url": "https://example.org/?token=1"}, "/url", "check the signature"),
        ({"url": "http://example.org/hook"}, "/url", "use https://"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_is_refused_by_its_field(changes: dict[str, object], pointer: str, says: str) -> None:
    refused = subscription.given().when(WEBHOOK.model_copy(update=changes)).then_refused_any()
    assert [error.pointer for error in refused.errors] == [pointer]
    assert says in refused.errors[0].message


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "[::1]:9000", "10.1.2.3", "localhost"])
def test_a_private_address_needs_no_encryption(host: str) -> None:
    near = WEBHOOK.model_copy(update={"url": f"http://{host}/hook"})
    assert len(subscription.given().when(near).made()) == 1


def test_a_nats_subscriber_cannot_ask_for_one_stream_or_have_an_address() -> None:
    of_one = NATS.model_copy(update={"filter": EventFilter(stream_id=JOB)})
    assert subscription.given().when(of_one).then_refused("invalid_request").errors[0].pointer == (
        "/filter/stream_id"
    )
    addressed = NATS.model_copy(update={"url": "https://example.org"})
    assert subscription.given().when(addressed).then_refused("invalid_request").errors[0].pointer == "/url"


def test_a_filter_takes_what_it_names() -> None:
    job, other = identifier("job"), identifier("job", 2)
    workspace = identifier("ws")
    assert EventFilter().takes("kinora.job.failed", job, None)
    named = EventFilter(types=("kinora.job.failed",), stream_id=job, workspace_id=workspace)
    assert named.takes("kinora.job.failed", job, workspace)
    assert not named.takes("kinora.job.succeeded", job, workspace)
    assert not named.takes("kinora.job.failed", other, workspace)
    assert not named.takes("kinora.job.failed", job, None)
