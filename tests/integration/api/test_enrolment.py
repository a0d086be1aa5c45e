"""How a node becomes an agent over HTTP: one token, one node, and proofs ever after."""

import asyncio
import base64
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from command_api.nats_auth.keys import new_seed, public_key, sign
from command_api.nats_auth.rights import agent_rights
from command_api.nats_auth.users import Issuer
from schemas.api import joining_proof, renewal_proof
from schemas.ids import Prefix, new_id
from schemas.settings import NatsUser
from schemas.subjects import agent_inbox
from tests.integration.api.running import Person, Visit
from trainer_agent import renewal
from trainer_agent.connection import Connection
from trainer_agent.credentials import NodeCredentials
from trainer_agent.settings import AgentSettings
from trainer_agent.waiting import running

Json = dict[str, Any]


async def admitted(person: Person, name: str = "node") -> str:
    answer = await person.post("/agents/enroll", {"name": name, "pool": "lab"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def token_for(person: Person, agent_id: str) -> str:
    answer = await person.post(f"/agents/{agent_id}/enrolment-token")
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def signed(seed: str, message: bytes) -> str:
    return base64.b64encode(sign(seed, message)).decode()


async def join(visit: Visit, token: str, seed: str, *, signing: str | None = None) -> httpx.Response:
    stranger = await visit.client()
    body = {
        "token": token,
        "public_key": public_key(seed),
        "signature": signed(signing or seed, joining_proof(token)),
    }
    return await stranger.post("/api/v1/agents/join", json=body)


async def renew(
    visit: Visit, agent_id: str, seed: str, asked_at: datetime | None = None, named: str | None = None
) -> httpx.Response:
    at = asked_at or datetime.now(UTC)
    stranger = await visit.client()
    body = {"asked_at": at.isoformat(), "signature": signed(seed, renewal_proof(named or agent_id, at))}
    return await stranger.post(f"/api/v1/agents/{agent_id}/renew", json=body)


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    return str(answer.json()["detail"])


async def test_a_token_makes_one_node_the_agent(visit: Visit, ada: Person) -> None:
    agent_id, seed = await admitted(ada), new_seed("user")
    issued = await ada.post(f"/agents/{agent_id}/enrolment-token", {"expires_in_seconds": 120})
    found, token = issued.json(), issued.json()["token"]
    assert token.startswith("knr_en_")
    left = datetime.fromisoformat(found["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=60) < left <= timedelta(seconds=120)

    answer = await join(visit, token, seed)
    joined = answer.json()
    assert answer.status_code == 200, answer.text
    assert (joined["agent_id"], joined["organization_id"], joined["pool"], joined["name"]) == (
        agent_id,
        ada.organization_id,
        "lab",
        "node",
    )
    again = await join(visit, token, seed)  # as if the answer had been lost
    assert (again.status_code, again.json()["agent_id"]) == (200, agent_id)
    refused(await join(visit, token, new_seed("user")), 409, "enrolment_token_used")

    events = (await ada.get("/events", params={"types": "kinora.agent.joined", "limit": 200})).json()["data"]
    mine = [event for event in events if event["subject"] == agent_id]
    assert [event["data"]["public_key"] for event in mine] == [public_key(seed)]
    for text in (str(events), (await ada.get("/events", params={"limit": 200})).text):
        assert token not in text
        assert seed not in text


async def test_the_last_token_counts(visit: Visit, ada: Person) -> None:
    agent_id = await admitted(ada)
    first, second = await token_for(ada, agent_id), await token_for(ada, agent_id)
    refused(await join(visit, first, new_seed("user")), 401, "enrolment_token_unknown")
    assert (await join(visit, second, new_seed("user"))).status_code == 200


async def test_a_token_ends(visit: Visit, ada: Person) -> None:
    agent_id = await admitted(ada)
    token = await token_for(ada, agent_id)
    async with visit.service.parts.pool.connection() as connection:
        await connection.execute(
            "UPDATE kinora_enrolment_tokens SET expires_at = now() - interval '1 second' WHERE agent_id = %s",
            (agent_id,),
        )
    refused(await join(visit, token, new_seed("user")), 401, "enrolment_token_expired")


@pytest.mark.parametrize("token", ["x", "knr_en_" + "A" * 43])
async def test_a_made_up_token_is_unknown(visit: Visit, token: str) -> None:
    refused(await join(visit, token, new_seed("user")), 401, "enrolment_token_unknown")


async def test_a_key_of_another_kind_is_refused(visit: Visit, ada: Person) -> None:
    token = await token_for(ada, await admitted(ada))
    stranger = await visit.client()
    for key in (public_key(new_seed("account")), "U" * 56, "", new_seed("user")):
        body = {"token": token, "public_key": key, "signature": signed(new_seed("user"), b"")}
        answer = await stranger.post("/api/v1/agents/join", json=body)
        refused(answer, 422, "invalid_request")
        assert [each["pointer"] for each in answer.json()["errors"]] == ["/public_key"]
        assert token not in answer.text
        assert not key or key[:2] != "SU" or key not in answer.text


async def test_nobody_joins_with_the_key_of_another_s_node(visit: Visit, ada: Person, bob: Person) -> None:
    """Revoking that agent would shut the other's node out of NATS."""
    seed, token = new_seed("user"), await token_for(bob, await admitted(bob))
    await join(visit, await token_for(ada, await admitted(ada)), seed)
    refused(await join(visit, token, seed, signing=new_seed("user")), 401, "proof_invalid")
    assert (await join(visit, token, new_seed("user"))).status_code == 200


async def test_a_token_is_shown_once(ada: Person) -> None:
    agent_id = await admitted(ada)
    key = new_id(Prefix.COMMAND)
    assert (await ada.post(f"/agents/{agent_id}/enrolment-token", key=key)).status_code == 201
    refused(await ada.post(f"/agents/{agent_id}/enrolment-token", key=key), 409, "secret_already_issued")


async def test_others_issue_no_token_and_revoke_nobody(ada: Person, bob: Person) -> None:
    agent_id = await admitted(ada)
    for path in (f"/agents/{agent_id}/enrolment-token", f"/agents/{agent_id}/revoke"):
        refused(await bob.post(path), 404, "not_found")
        refused(await ada.post(path.replace(agent_id, new_id(Prefix.AGENT))), 404, "not_found")


async def test_a_node_renews_with_its_key(visit: Visit, ada: Person) -> None:
    agent_id, seed = await admitted(ada), new_seed("user")
    refused(await renew(visit, agent_id, seed), 401, "proof_invalid")
    await join(visit, await token_for(ada, agent_id), seed)
    answer = await renew(visit, agent_id, seed)
    assert answer.status_code == 200, answer.text
    assert datetime.fromisoformat(answer.json()["expires_at"]) > datetime.now(UTC) + timedelta(hours=23)
    refused(await renew(visit, agent_id, new_seed("user")), 401, "proof_invalid")
    refused(await renew(visit, agent_id, seed, named=new_id(Prefix.AGENT)), 401, "proof_invalid")
    refused(await renew(visit, new_id(Prefix.AGENT), seed), 401, "proof_invalid")
    for off in (timedelta(minutes=11), timedelta(minutes=-11)):
        said = refused(await renew(visit, agent_id, seed, datetime.now(UTC) + off), 401, "proof_expired")
        assert "clock" in said


async def test_a_node_takes_the_place_of_another_one(visit: Visit, ada: Person) -> None:
    agent_id, lost, found = await admitted(ada), new_seed("user"), new_seed("user")
    first = await token_for(ada, agent_id)
    await join(visit, first, lost)
    second = await token_for(ada, agent_id)
    assert (await join(visit, first, lost)).status_code == 200  # a late repeat, which voids nothing
    assert (await join(visit, second, found)).status_code == 200
    refused(await renew(visit, agent_id, lost), 401, "proof_invalid")
    # Whoever has the lost node cannot take the place back by what it joined with.
    refused(await join(visit, first, lost), 401, "enrolment_token_unknown")
    assert (await renew(visit, agent_id, found)).status_code == 200


async def test_a_revoked_agent_gets_nothing_more(visit: Visit, ada: Person) -> None:
    agent_id, seed = await admitted(ada), new_seed("user")
    await join(visit, await token_for(ada, agent_id), seed)
    unspent = await token_for(ada, agent_id)
    answer = await ada.post(f"/agents/{agent_id}/revoke", {"reason": "stolen"})
    assert (answer.status_code, answer.json()["status"]) == (202, "revoked"), answer.text
    assert (await ada.post(f"/agents/{agent_id}/revoke")).status_code == 202
    refused(await renew(visit, agent_id, seed), 409, "agent_revoked")
    refused(await join(visit, unspent, seed), 409, "agent_revoked")
    refused(await ada.post(f"/agents/{agent_id}/enrolment-token"), 409, "agent_revoked")
    shown = await ada.get(
        "/agents", params={"min_position": answer.json()["last_position"], "status": "revoked"}
    )
    assert agent_id in {row["id"] for row in shown.json()["data"]}


async def test_an_agent_that_was_off_too_long_comes_back(visit: Visit, ada: Person, tmp_path: Path) -> None:
    agent_id, seed = await admitted(ada), new_seed("user")
    await join(visit, await token_for(ada, agent_id), seed)
    nats = visit.service.parts.settings.nats
    two_days_ago = Issuer(nats.agents, nats.user_seconds, lambda: time.time() - 2 * 86400)
    rights = agent_rights(ada.organization_id, agent_id, "lab")
    settings = AgentSettings(
        agent_id=agent_id,
        organization_id=ada.organization_id,
        pool="lab",
        name="node",
        nats=NatsUser(
            url=nats.url,
            jwt=two_days_ago.user(public_key(seed), agent_id, rights).jwt,
            seed=SecretStr(seed),
        ),
        api_url=visit.service.url,
        work_folder=tmp_path,
    )
    credentials = NodeCredentials(settings.nats, tmp_path / "nats.jwt")
    assert credentials.seconds_until(1.0) < 0
    connection = Connection(credentials, name="late", inbox_prefix=agent_inbox(agent_id))
    async with (
        connection,
        httpx.AsyncClient(trust_env=False) as http,
        running(renewal.renew(connection, credentials, settings, http)),
    ):
        await asyncio.wait_for(connection.session_after(0), 30)
        assert credentials.seconds_until(1.0) > 23 * 3600
