"""The control plane as an agent sees it: claims, heartbeats, URLs and streams, over the real NATS and S3.

It decides nothing that the tests do not tell it; what it received it keeps for them.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import APIError

from command_api.messaging.connection import connect
from command_api.messaging.topology import Topology
from command_api.objects import ObjectStore
from schemas import subjects
from schemas.base import Message
from schemas.datasets import Clip, Example, Manifest
from schemas.ids import Prefix, new_id
from schemas.objects import (
    FileEntry,
    Listing,
    StoredObject,
    adapter_prefix,
    checkpoint_prefix,
    content_key,
    log_prefix,
    validation_prefix,
)
from schemas.settings import NatsSettings, S3Settings
from schemas.work import (
    Assignment,
    ClaimReply,
    ClaimRequest,
    Control,
    DesiredState,
    Heartbeat,
    HeartbeatReply,
    HeldItem,
    Hello,
    HelloReply,
    PresignReply,
    PresignRequest,
    Report,
    ReportBody,
    TelemetryLine,
    UploadRequest,
    UploadTarget,
    WorkOffer,
)

M = TypeVar("M", bound=Message)
B = TypeVar("B", bound=Message)

POOL = "default"


@dataclass
class Peer:
    """One organization with one agent."""

    client: Client
    store: ObjectStore
    organization_id: str = field(default_factory=lambda: new_id(Prefix.ORGANIZATION))
    agent_id: str = field(default_factory=lambda: new_id(Prefix.AGENT))
    assignments: dict[HeldItem, Assignment] = field(default_factory=dict)
    """What a claim is granted; any other claim is gone."""
    desired: DesiredState = "run"
    hellos: list[Hello] = field(default_factory=list)
    heartbeats: list[Heartbeat] = field(default_factory=list)
    claims: list[ClaimRequest] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    """In the order in which the stream REPORTS has them."""
    telemetry: list[TelemetryLine] = field(default_factory=list)
    answers_claims: bool = True
    expired_urls: int = 0
    """How many of the next downloads get a URL that has run out."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    # ---- what a test waits for ----

    async def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until `condition` holds after some message; fails with what was reported so far."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"not within {seconds} s; reports so far: {self.kinds()}") from None

    async def reported(self, kind: type[B], seconds: float = 60.0) -> B:
        """The first report of this kind."""
        await self.until(lambda: any(isinstance(body, kind) for body in self.bodies()), seconds)
        return next(body for body in self.bodies() if isinstance(body, kind))

    def bodies(self) -> list[ReportBody]:
        """Every report's body once, in the order of their numbers."""
        unique = {(report.item_id, report.attempt, report.sequence): report.body for report in self.reports}
        return [unique[key] for key in sorted(unique)]

    def kinds(self) -> list[str]:
        return [body.kind for body in self.bodies()]

    # ---- what a test does ----

    async def offer(
        self, held: HeldItem, assignment: Assignment, lane: str, priority: str = "normal"
    ) -> None:
        """Queue `held`; a claim of it will be granted."""
        self.assignments[held] = assignment
        subject = subjects.work_subject(self.organization_id, POOL, lane, priority, held.item_id)
        offer = WorkOffer(item_id=held.item_id, attempt=held.attempt)
        await self.client.jetstream().publish(subject, offer.model_dump_json().encode(), timeout=5)

    async def queued(self) -> int:
        """Offers that nobody has settled."""
        return (await self.client.jetstream().stream_info(subjects.WORK_STREAM)).state.messages

    async def want(self, held: HeldItem, desired: DesiredState) -> None:
        """Answer heartbeats so from now on, and push it."""
        self.desired = desired
        subject = subjects.control_subject(self.organization_id, self.agent_id)
        await self.client.publish(subject, Control(held=held, desired=desired).model_dump_json().encode())

    async def put_content(self, path: str, content: bytes) -> FileEntry:
        """Content-addressed, as uploads leave it."""
        sha256 = hashlib.sha256(content).hexdigest()
        await self.store.put_bytes(content_key(self.organization_id, sha256), content)
        return FileEntry(path=path, size_bytes=len(content), sha256=sha256)

    async def put_listing(self, files: Sequence[FileEntry]) -> StoredObject:
        listing = Listing(files=tuple(sorted(files, key=lambda file: file.path)))
        entry = await self.put_content("listing.json", listing.model_dump_json().encode())
        return StoredObject(**entry.model_dump(), key=content_key(self.organization_id, entry.sha256))

    async def put_folder(self, folder: Path) -> tuple[StoredObject, list[FileEntry]]:
        """Upload a folder; its listing and the files in it."""
        contents = await asyncio.to_thread(_contents, folder)
        files = [await self.put_content(path, content) for path, content in contents.items()]
        return await self.put_listing(files), files

    # ---- what the agent asks ----

    async def hello(self, hello: Hello) -> HelloReply:
        self.hellos.append(hello)
        return HelloReply(accepted=True, pool=POOL, heartbeat_seconds=0.5)

    async def claim(self, request: ClaimRequest) -> ClaimReply | None:
        self.claims.append(request)
        if not self.answers_claims:
            return None
        assignment = self.assignments.get(HeldItem(item_id=request.item_id, attempt=request.attempt))
        if assignment is None:
            return ClaimReply(outcome="gone")
        return ClaimReply(outcome="granted", assignment=assignment)

    async def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        self.heartbeats.append(heartbeat)
        return HeartbeatReply(lease_until=datetime.now(UTC) + timedelta(seconds=30), desired=self.desired)

    async def presign(self, request: PresignRequest) -> PresignReply:
        targets = [self._target(request, upload) for upload in request.upload]
        return PresignReply(
            downloads=tuple([await self._download_url(key) for key in request.download]),
            uploads=tuple(
                [
                    UploadTarget(url=await self.store.presign_put(target.key), object=target)
                    for target in targets
                ]
            ),
        )

    async def _download_url(self, key: str) -> str:
        url = await self.store.presign_get(key)
        if self.expired_urls == 0:
            return url
        self.expired_urls -= 1
        before, _, after = url.partition("X-Amz-Date=")
        return f"{before}X-Amz-Date=20200101T000000Z{after[16:]}"

    def _target(self, request: PresignRequest, upload: UploadRequest) -> StoredObject:
        place = self.organization_id, request.item_id, request.attempt
        prefix = {
            "checkpoint": checkpoint_prefix(*place, upload.step),
            "adapter": adapter_prefix(*place),
            "log": log_prefix(*place),
            "validation": validation_prefix(*place),
        }[upload.purpose]
        return StoredObject(**upload.file.model_dump(), key=f"{prefix}/{upload.file.path}")

    # ---- wiring ----

    async def serve(self) -> None:
        """Answer from now on."""
        place = self.organization_id, self.agent_id
        topology = Topology(self.client.jetstream(), events_max_bytes=2**20)
        await topology.ensure_streams()
        await topology.ensure_pool(self.organization_id, POOL)
        await self._answer(subjects.hello_subject(*place), Hello, self.hello)
        await self._answer(subjects.claim_subject(*place), ClaimRequest, self.claim)
        await self._answer(subjects.heartbeat_subject(*place), Heartbeat, self.heartbeat)
        await self._answer(subjects.presign_subject(*place), PresignRequest, self.presign)

        async def note(message: Msg) -> None:
            self.telemetry.append(TelemetryLine.model_validate_json(message.data))

        await self.client.subscribe(subjects.telemetry_subject(self.organization_id, "*"), cb=note)

    async def _answer(
        self, subject: str, request: type[M], handle: Callable[[M], Awaitable[Message | None]]
    ) -> None:
        async def receive(message: Msg) -> None:
            reply = await handle(request.model_validate_json(message.data))
            if reply is not None:
                await message.respond(reply.model_dump_json().encode())
            async with self._changed:
                self._changed.notify_all()

        await self.client.subscribe(subject, cb=receive)

    async def read_reports(self) -> None:
        """Keep reading REPORTS, through restarts of the server."""
        inbox = await self.client.jetstream().pull_subscribe_bind(
            durable=subjects.INBOX_DURABLE, stream=subjects.REPORTS_STREAM
        )
        while True:
            try:
                messages = await inbox.fetch(1, timeout=1)
            except (TimeoutError, APIError, OSError):
                await asyncio.sleep(0.05)
                continue
            for message in messages:
                self.reports.append(Report.model_validate_json(message.data))
                await message.ack()
            async with self._changed:
                self._changed.notify_all()


@asynccontextmanager
async def serving_peer(nats: NatsSettings, s3: S3Settings) -> AsyncIterator[Peer]:
    """A peer that answers for the length of the block."""
    async with connect(nats, "peer") as client, ObjectStore(s3) as store:
        peer = Peer(client, store)
        await peer.serve()
        reading = asyncio.create_task(peer.read_reports())
        try:
            yield peer
        finally:
            reading.cancel()
            await asyncio.wait({reading})


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def manifest_of(files: Sequence[FileEntry], captions: bytes) -> Manifest:
    """The manifest of sample clips, as a validation would have written it."""
    rows = [json.loads(line) for line in captions.decode().splitlines() if line]
    by_path = {file.path: file for file in files}
    clips = tuple(
        Clip(
            path=path,
            sha256=by_path[path].sha256,
            size_bytes=by_path[path].size_bytes,
            frames=8,
            duration_seconds=1.0,
            width=32,
            height=32,
            codec="h264",
        )
        for path in sorted({row["video"] for row in rows})
    )
    examples = tuple(
        Example(clip=row["video"], prompt=row["prompt"], response=row["response"], row=number)
        for number, row in enumerate(rows, start=1)
    )
    return Manifest(clips=clips, examples=examples)
