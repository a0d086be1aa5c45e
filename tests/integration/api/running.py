"""The application as it is deployed: a real uvicorn on loopback in a thread, the projections beside it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fastapi import FastAPI
from pydantic import SecretStr

import projections.run
from command_api.app import create_app
from command_api.objects import ObjectStore
from command_api.routes.parts import Parts
from command_api.settings import ApiSettings, ControlSecrets
from kinora.http import configuration, listen
from projections.settings import ProjectionsSettings
from schemas.settings import NatsSettings, PostgresSettings, S3Settings

PASSWORD = "correct horse battery"
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Account:
    """Somebody who signed up."""

    username: str
    user_id: str
    organization_id: str
    workspace_id: str
    token: str


@dataclass(frozen=True)
class Person(Account):
    """Somebody at work, in one test."""

    http: httpx.AsyncClient

    async def get(self, path: str, **arguments: Any) -> httpx.Response:
        return await self.http.get(f"/api/v1{path}", **arguments)

    async def delete(self, path: str) -> httpx.Response:
        return await self.http.delete(f"/api/v1{path}")

    async def post(
        self, path: str, body: Any = None, *, key: str | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        sent = dict(headers or {}) | ({} if key is None else {"Idempotency-Key": key})
        return await self.http.post(f"/api/v1{path}", json=body, headers=sent)


@dataclass(frozen=True)
class Service:
    """A running application and its insides, which live on another thread's loop."""

    app: FastAPI
    url: str
    s3: S3Settings
    loop: asyncio.AbstractEventLoop
    operator: Account | None = None
    """Who signed up first, where somebody did."""

    @property
    def parts(self) -> Parts:
        parts: Parts = self.app.state.parts
        return parts


@dataclass
class Visit:
    """One test's clients of a service, closed at its end."""

    service: Service
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stack.aclose()

    async def client(self, token: str | None = None) -> httpx.AsyncClient:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        client = httpx.AsyncClient(base_url=self.service.url, headers=headers, trust_env=False, timeout=20)
        return await self.stack.enter_async_context(client)

    async def store(self) -> ObjectStore:
        return await self.stack.enter_async_context(ObjectStore(self.service.s3))

    async def sign_up(self, name: str = "ada") -> Person:
        """A new person in an organization of their own, where nothing happened yet."""
        return await self.come_in(await self.make_account(name))

    async def make_account(self, name: str) -> Account:
        username = f"{name}-{uuid4().hex[:10]}"
        stranger = await self.client()
        body = {"username": username, "email": f"{username}@example.org", "password": PASSWORD}
        answer = await stranger.post("/api/v1/auth/signup", json=body)
        assert answer.status_code == 201, answer.text
        found = answer.json()
        return Account(
            username=username,
            user_id=found["user_id"],
            organization_id=found["organization_id"],
            workspace_id=found["workspace_id"],
            token=found["access_token"],
        )

    async def come_in(self, account: Account) -> Person:
        return Person(**vars(account), http=await self.client(account.token))


def fresh_secrets() -> ControlSecrets:
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return ControlSecrets(
        token_private_key_pem=SecretStr(key.decode()),
        personal_key_hex=SecretStr("11" * 32),
        index_key_hex=SecretStr("22" * 32),
    )


@dataclass(frozen=True)
class Backing:
    """The servers below an application, and its keys."""

    postgres: PostgresSettings
    nats: NatsSettings
    s3: S3Settings
    secrets: ControlSecrets = field(default_factory=fresh_secrets)
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the settings, for services that a test has for itself."""

    def settings(self, port: int) -> ApiSettings:
        settings = ApiSettings(
            port=port,
            public_url=f"http://127.0.0.1:{port}",
            postgres=self.postgres,
            nats=self.nats,
            s3=self.s3,
            secrets=self.secrets,
            upload_part_bytes=5 * MEBIBYTE,
            max_declaration_bytes=2 * MEBIBYTE,
            max_body_seconds=3.0,
        )
        return settings.model_copy(update=dict(self.changes))


@asynccontextmanager
async def _serving(backing: Backing) -> AsyncIterator[Service]:
    with listen("the API", "127.0.0.1", 0) as listening:
        settings = backing.settings(listening.getsockname()[1])
        app = create_app(settings)
        server = uvicorn.Server(configuration(settings, app))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            async with asyncio.timeout(30):
                while not server.started:
                    assert not task.done(), "the application did not start"
                    await asyncio.sleep(0.01)
            yield Service(app, settings.public_url, backing.s3, asyncio.get_running_loop())
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def _projecting(backing: Backing) -> AsyncIterator[None]:
    stop, ready = asyncio.Event(), asyncio.Event()
    settings = ProjectionsSettings(postgres=backing.postgres)
    task = asyncio.create_task(projections.run.run(settings, stop, ready=ready.set))
    try:
        async with asyncio.timeout(30):
            await ready.wait()
        yield
    finally:
        stop.set()
        await task


@contextmanager
def running_service(backing: Backing, *, projecting: bool = True) -> Iterator[Service]:
    """Serve in a thread of its own, so that tests with loops of their own can share it."""
    started: list[Service] = []
    failed: list[BaseException] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            started.append(await stack.enter_async_context(_serving(backing)))
            if projecting:
                await stack.enter_async_context(_projecting(backing))
            ready.set()
            await asyncio.to_thread(stop.wait)

    def body() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=body, name="service")
    thread.start()
    try:
        ready.wait(60)
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    if failed:
        raise failed[0]
