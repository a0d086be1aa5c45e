"""The application as it is deployed: a real uvicorn on loopback, the projections beside it, real servers below."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fastapi import FastAPI
from pydantic import SecretStr

import projections.run
from command_api.app import create_app
from command_api.routes.parts import Parts
from command_api.settings import ApiSettings, ControlSecrets
from projections.settings import ProjectionsSettings
from schemas.settings import NatsSettings, PostgresSettings, S3Settings

PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Person:
    """Somebody who is signed in."""

    username: str
    user_id: str
    organization_id: str
    workspace_id: str
    token: str
    http: httpx.AsyncClient

    async def get(self, path: str, **arguments: Any) -> httpx.Response:
        return await self.http.get(f"/api/v1{path}", **arguments)

    async def post(self, path: str, body: Any = None, *, key: str | None = None, **arguments: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.http.post(f"/api/v1{path}", json=body, headers=headers, **arguments)


@dataclass(frozen=True)
class Running:
    """The application, its address and its insides."""

    app: FastAPI
    url: str
    stack: AsyncExitStack

    @property
    def parts(self) -> Parts:
        parts: Parts = self.app.state.parts
        return parts

    async def client(self, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
        client = httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=20)
        return await self.stack.enter_async_context(client)

    async def sign_up(self, username: str) -> Person:
        stranger = await self.client()
        body = {"username": username, "email": f"{username}@example.org", "password": PASSWORD}
        answer = await stranger.post("/api/v1/auth/signup", json=body)
        assert answer.status_code == 201, answer.text
        token = answer.json()["access_token"]
        http = await self.client({"Authorization": f"Bearer {token}"})
        me = (await http.get("/api/v1/users/me")).json()
        return Person(username, me["id"], me["organization_id"], me["workspace_id"], token, http)


def settings_for(database: PostgresSettings, nats: NatsSettings, s3: S3Settings, port: int) -> ApiSettings:
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return ApiSettings(
        port=port,
        public_url=f"http://127.0.0.1:{port}",
        postgres=database,
        nats=nats,
        s3=s3,
        secrets=ControlSecrets(
            token_private_key_pem=SecretStr(key.decode()),
            personal_key_hex=SecretStr("11" * 32),
            index_key_hex=SecretStr("22" * 32),
        ),
        upload_part_bytes=5 * 2**20,
        max_body_bytes=2 * 2**20,
    )


@pytest.fixture
async def service(
    database: PostgresSettings, nats: NatsSettings, s3: S3Settings
) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        app = create_app(settings_for(database, nats, s3, port))
        config = uvicorn.Config(app, log_config=None, lifespan="on", ws="websockets-sansio", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        stop, ready = asyncio.Event(), asyncio.Event()
        folding = asyncio.create_task(
            projections.run.run(ProjectionsSettings(postgres=database), stop, ready=ready.set)
        )
        try:
            async with asyncio.timeout(20):
                await ready.wait()
                while not server.started:
                    assert not serving.done(), serving
                    await asyncio.sleep(0.01)
            yield Running(app, f"http://127.0.0.1:{port}", stack)
        finally:
            await stack.aclose()
            server.should_exit = True
            await serving
            stop.set()
            listening.close()
            await folding


@pytest.fixture
async def ada(service: Running) -> Person:
    return await service.sign_up("ada")


@pytest.fixture
async def bob(service: Running) -> Person:
    """Of another organization."""
    return await service.sign_up("bob")
