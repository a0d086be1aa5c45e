"""One application for the fuzzer alone: no quotas, a long-lived token, and something to find."""

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql

from command_api.settings import RateSettings
from kinora.local.servers import EmbeddedServers
from tests.integration.api.running import Backing, Visit, running_service
from tests.integration.api.stories import ready_inputs, request_job

UNLIMITED = RateSettings(
    **{name: "" for name in RateSettings.model_fields if name not in ("storage_uri", "feeds")}
)


@dataclass(frozen=True)
class Target:
    """What is fuzzed, as whom, and what this person has."""

    url: str
    token: str
    ids: dict[str, str]


@pytest.fixture(scope="session")
def target(servers: EmbeddedServers) -> Iterator[Target]:
    name = f"fuzz_{secrets.token_hex(6)}"
    s3 = servers.s3.model_copy(update={"bucket": name.replace("_", "-")})
    with psycopg.connect(servers.postgres_superuser.conninfo(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(servers.postgres.user)
            )
        )
    database = servers.postgres.model_copy(update={"dbname": name})
    changes = {"rates": UNLIMITED, "access_token_seconds": 86400}
    with running_service(Backing(database, servers.nats_control, s3, changes=changes)) as running:

        async def first_comes() -> Target:
            async with Visit(running) as visit:
                person = await visit.sign_up("fuzz")
                inputs = await ready_inputs(visit, person)
                job = await request_job(person, inputs)
                agent = (await person.post("/agents/enroll", {"name": "node"})).json()
                events = (await person.get(f"/jobs/{job['id']}/events")).json()["data"]
                ids = {
                    "dataset_id": inputs.dataset_id,
                    "model_id": inputs.model_id,
                    "job_id": job["id"],
                    "agent_id": agent["id"],
                    "event_id": events[0]["id"],
                    "name": "jobs",
                    "collection_id": "1",
                    "code": "not_found",
                }
                return Target(running.url, person.token, ids)

        yield asyncio.run(first_comes())
