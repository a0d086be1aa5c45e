"""Trees, heads and the alarms over them, on the real database."""

import asyncio
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from psycopg import AsyncConnection

from command_api.audit.findings import Findings
from command_api.handlers.bus import CommandBus
from command_api.handlers.registry import HANDLERS
from command_api.transparency import heads, trees
from command_api.transparency.alarm import Alarm
from command_api.transparency.errors import LogContradicted
from command_api.transparency.growth import TileMissing
from command_api.transparency.proofs import leaf_page, prove_consistency, prove_inclusion
from command_api.transparency.recheck import Fault, recheck
from command_api.transparency.trees import advance, forget
from schemas import merkle
from schemas.heads import NOBODY, HeadOfOrganization, SignedHead
from tests.integration.transparency.conftest import Chronicle


async def follow(connection: AsyncConnection) -> None:
    while await advance(connection) is not None:
        continue
    await heads.refuse_shorter(connection)


async def sign(connection: AsyncConnection, chronicle: Chronicle) -> SignedHead:
    await follow(connection)
    signed = await heads.sign_head(connection, chronicle.signer, chronicle.log.log_id)
    assert signed is not None
    return signed


def root(chronicle: Chronicle, organization: str | None) -> str:
    return merkle.root_of([merkle.hash_event(*each) for each in chronicle.states(organization)]).hex()


async def test_a_head_holds_every_organization_s_tree(
    chronicle: Chronicle, connection: AsyncConnection
) -> None:
    told = chronicle.tell(chronicle.ada, None, chronicle.bob, chronicle.ada)
    signed = await sign(connection, chronicle)

    public = Ed25519PublicKey.from_public_bytes(chronicle.signer.public_key)
    public.verify(bytes.fromhex(signed.signature), signed.head.signed_bytes())
    assert (signed.head.number, signed.head.position) == (1, told[-1])
    assert signed.head.log_id == chronicle.log.log_id
    for organization, name, size in ((chronicle.ada, chronicle.ada, 2), (None, NOBODY, 1)):
        own = await heads.head_of(connection, name, None)
        assert own.tree is not None
        assert (own.tree.size, own.tree.root) == (size, root(chronicle, organization))
        assert own.shows_tree()
    stranger = await heads.head_of(connection, "org_" + "0" * 32, None)
    assert stranger.tree is None

    forged = own.tree.model_copy(update={"size": 7})
    assert not HeadOfOrganization(**(dict(own) | {"tree": forged})).shows_tree()
    assert await heads.sign_head(connection, chronicle.signer, chronicle.log.log_id) is None


async def test_proofs_hold_at_every_head(
    chronicle: Chronicle, connection: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of an odd size, heads at odd places, and a tree of more than one tile."""
    monkeypatch.setattr(trees, "PAGE_EVENTS", 7)
    numbers = []
    for count in (3, 298, 30):
        chronicle.tell(*[chronicle.ada] * count, chronicle.bob)
        numbers.append((await sign(connection, chronicle)).head.number)
    events = chronicle.states(chronicle.ada)
    for number, size in zip(numbers, (3, 301, 331), strict=True):
        for index in {0, 2, size // 2, size - 1}:
            position, state = events[index]
            proof = await prove_inclusion(connection, chronicle.ada, position, number)
            assert proof.head.tree is not None
            assert proof.head.tree.size == size
            assert merkle.includes(
                merkle.hash_event(position, state),
                proof.index,
                size,
                [bytes.fromhex(step) for step in proof.path],
                bytes.fromhex(proof.head.tree.root),
            )
    for old, new in ((0, 0), (0, 1), (1, 2), (0, 2)):
        shown = await prove_consistency(connection, chronicle.ada, numbers[old], numbers[new])
        assert shown.older is not None
        assert shown.newer is not None
        assert merkle.begins_with(
            shown.older.size,
            bytes.fromhex(shown.older.root),
            shown.newer.size,
            bytes.fromhex(shown.newer.root),
            map(bytes.fromhex, shown.path),
        )
    after, until = events[100][0], events[320][0]
    listed = await leaf_page(connection, chronicle.ada, after, until)
    assert listed == [(position, merkle.hash_event(position, state)) for position, state in events[101:321]]
    assert await leaf_page(connection, chronicle.ada, until, until) == []


async def test_trees_are_the_same_however_they_were_made(
    chronicle: Chronicle, connection: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between pages, made again from nothing, and kept by two at once."""
    monkeypatch.setattr(trees, "PAGE_EVENTS", 5)
    chronicle.tell(*[chronicle.ada, chronicle.bob, None] * 4)
    await advance(connection)
    first = await sign(connection, chronicle)
    chronicle.tell(*[chronicle.bob] * 20)
    async with await AsyncConnection.connect(chronicle.conninfo, autocommit=True) as another:
        await asyncio.gather(follow(connection), follow(another))
    second = await sign(connection, chronicle)
    await forget(connection)
    await follow(connection)
    assert await heads.sign_head(connection, chronicle.signer, chronicle.log.log_id) is None
    for signed in (first, second):
        own = await heads.head_of(connection, chronicle.ada, signed.head.number)
        assert own.tree is not None
        assert own.tree.root == root(chronicle, chronicle.ada)
    await connection.execute("DELETE FROM kinora_merkle_tiles WHERE organization = %s", (chronicle.bob,))
    chronicle.tell(chronicle.bob)
    with pytest.raises(TileMissing):
        await advance(connection)


Tamper = Callable[[Chronicle, int], None]


def altered(chronicle: Chronicle, position: int) -> None:
    chronicle.tamper(
        "UPDATE kinora_events"
        " SET state = replace(encode(state, 'escape'), 'system:test', 'system:tess')::bytea"
        " WHERE notification_id = %s",
        position,
    )


def dropped(chronicle: Chronicle, position: int) -> None:
    chronicle.tamper("DELETE FROM kinora_events WHERE notification_id = %s", position)


def inserted(chronicle: Chronicle, position: int) -> None:
    """In the gap behind `position`."""
    (new,) = chronicle.tell(chronicle.ada)
    chronicle.tamper(
        "UPDATE kinora_events SET notification_id = %s WHERE notification_id = %s", position + 1, new
    )


@pytest.fixture
def gap(chronicle: Chronicle) -> int:
    """Ada's third event of five, with a gap behind it; Bob's come last."""
    positions = chronicle.tell(*[chronicle.ada] * 3)
    chronicle.tamper("SELECT nextval('kinora_events_notification_id_seq')")
    chronicle.tell(chronicle.ada, chronicle.bob, chronicle.ada, chronicle.bob)
    return positions[-1]


@pytest.mark.parametrize("tampered", [altered, dropped, inserted], ids=lambda tamper: tamper.__name__)
async def test_history_that_was_changed_is_named_and_never_signed_again(
    chronicle: Chronicle, connection: AsyncConnection, gap: int, tampered: Tamper
) -> None:
    await sign(connection, chronicle)
    assert (await recheck(connection)).faults == ()
    tampered(chronicle, gap)

    place = gap + 1 if tampered is inserted else gap
    assert (await recheck(connection)).faults == (Fault(place, chronicle.ada, tampered.__name__),)
    assert (await heads.head_of(connection, chronicle.ada, None)).shows_tree()

    await forget(connection)
    with pytest.raises(LogContradicted, match=chronicle.ada):
        await follow(connection)


async def test_an_event_slipped_in_behind_an_organization_s_last(
    chronicle: Chronicle, connection: AsyncConnection
) -> None:
    chronicle.tell(chronicle.ada)
    await sign(connection, chronicle)
    chronicle.tamper("SELECT nextval('kinora_events_notification_id_seq')")
    (last,) = chronicle.tell(chronicle.bob)
    await sign(connection, chronicle)
    inserted(chronicle, last - 2)
    await forget(connection)
    with pytest.raises(LogContradicted, match=f"{chronicle.ada} has an event at position {last - 1}"):
        await follow(connection)


async def test_a_log_that_lost_its_end_is_not_signed(
    chronicle: Chronicle, connection: AsyncConnection
) -> None:
    told = chronicle.tell(chronicle.ada, chronicle.bob)
    await sign(connection, chronicle)
    dropped(chronicle, told[-1])
    assert (await recheck(connection)).faults == (Fault(told[-1], chronicle.bob, "dropped"),)
    await forget(connection)
    with pytest.raises(LogContradicted, match="events were dropped"):
        await follow(connection)


async def test_former_keys_stay_known(chronicle: Chronicle, connection: AsyncConnection) -> None:
    await chronicle.signer.register(connection)
    await chronicle.signer.register(connection)
    assert [key.key_id for key in (await heads.keys(connection)).data] == [chronicle.signer.key_id]


async def test_an_event_that_is_altered_together_with_its_leaf_is_not_signed(
    chronicle: Chronicle, connection: AsyncConnection, gap: int
) -> None:
    """The tree then begins otherwise than it was signed, whatever is appended to it."""
    await sign(connection, chronicle)
    altered(chronicle, gap)
    (leaf,) = [merkle.hash_event(*each) for each in chronicle.states(chronicle.ada) if each[0] == gap]
    chronicle.tamper(
        "UPDATE kinora_merkle_tiles SET hashes = overlay(hashes placing %s from 65) WHERE organization = %s",
        leaf,
        chronicle.ada,
    )
    assert (await recheck(connection)).faults == ()
    chronicle.tell(chronicle.ada)
    with pytest.raises(LogContradicted, match=f"events of {chronicle.ada}, and the log begins with others"):
        await sign(connection, chronicle)


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("UPDATE kinora_head_trees SET root = sha256(root)", "is not over the trees"),
        (
            "UPDATE kinora_heads SET document ="
            " convert_to(replace(convert_from(document, 'UTF8'), '\"number\":1,', '\"number\":2,'), 'UTF8')",
            "is not as it was signed",
        ),
    ],
    ids=["trees", "document"],
)
async def test_after_a_head_that_was_altered_nothing_is_signed(
    chronicle: Chronicle, connection: AsyncConnection, statement: str, wrong: str
) -> None:
    chronicle.tell(chronicle.ada, chronicle.bob)
    await sign(connection, chronicle)
    chronicle.tamper(statement)
    chronicle.tell(chronicle.ada)
    with pytest.raises(LogContradicted, match=wrong):
        await sign(connection, chronicle)


async def findings_of(chronicle: Chronicle) -> list[tuple[str, str | None, str]]:
    return [
        (raw.type.split(".")[2], raw.organization_id, raw.state.decode())
        for raw in await asyncio.to_thread(chronicle.log.read_all, 0, 10_000)
        if raw.type.startswith("kinora.finding.")
    ]


async def test_what_the_keeper_finds_is_a_finding_until_it_is_put_right(
    chronicle: Chronicle, connection: AsyncConnection, gap: int
) -> None:
    async with CommandBus(chronicle.log, HANDLERS) as bus:
        alarm = Alarm(Findings(bus, ("log",)), chronicle.log.log_id)
        await sign(connection, chronicle)
        await alarm.rechecked(await recheck(connection))
        (state,) = [state for position, state in chronicle.states(chronicle.ada) if position == gap]
        altered(chronicle, gap)
        for _ in range(2):
            await alarm.rechecked(await recheck(connection))
        ((kind, organization, event),) = await findings_of(chronicle)
        assert (kind, organization) == ("opened", chronicle.ada)
        assert f"the event at position {gap} of {chronicle.ada} was altered" in event
        await forget(connection)
        with pytest.raises(LogContradicted) as contradicted:
            await follow(connection)
        for _ in range(2):
            await alarm.contradicted(contradicted.value)
        assert [(each[0], each[1]) for each in await findings_of(chronicle)][1:] == [("opened", None)]

        chronicle.tamper("UPDATE kinora_events SET state = %s WHERE notification_id = %s", state, gap)
        await follow(connection)
        await sign(connection, chronicle)
        await alarm.agrees(connection)
        await alarm.rechecked(await recheck(connection))
        assert [each[0] for each in await findings_of(chronicle)][2:] == ["resolved", "resolved"]


async def test_a_damaged_root_is_not_signed(chronicle: Chronicle, connection: AsyncConnection) -> None:
    """Trees are derived: they are made again, and then give the head that the log gives."""
    chronicle.tell(chronicle.ada, chronicle.bob)
    await follow(connection)
    chronicle.tamper(
        "UPDATE kinora_merkle_trees SET root = sha256(root) WHERE organization = %s", chronicle.bob
    )
    with pytest.raises(TileMissing, match=chronicle.bob):
        await sign(connection, chronicle)
    await forget(connection)
    await sign(connection, chronicle)
    own = await heads.head_of(connection, chronicle.bob, None)
    assert own.tree is not None
    assert own.tree.root == root(chronicle, chronicle.bob)
