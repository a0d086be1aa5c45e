"""Bodies of the REST API that more than one side spells: the CLI sends what the routes read."""

import base64
import unicodedata
from datetime import datetime
from typing import Literal, Self

from pydantic import AwareDatetime, Field, ValidationInfo, field_validator, model_validator

from schemas.base import Message
from schemas.events.job import Priority, StopMode
from schemas.ids import AgentId, DatasetId, ModelId, NatsPublicKey, OrganizationId, StreamId
from schemas.objects import FileEntry
from schemas.passwords import weakness
from schemas.secrets import SecretKind, SecretName
from schemas.subjects import DEFAULT_POOL
from schemas.text import Line, LongText, Name, OptionalName, Reason, ShortName
from schemas.training import Hyperparameters


class SignupBody(Message):
    """POST /auth/signup"""

    username: str = Field(min_length=3, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    email: str = Field(min_length=3, max_length=254, pattern=r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$")
    password: str = Field(
        min_length=10,
        max_length=1024,
        description="Neither your name nor a common word, a row of keys or one piece repeated.",
    )

    @field_validator("password")
    @classmethod
    def _hard_to_guess(cls, password: str, info: ValidationInfo) -> str:
        # The message must not hold the password.
        names: dict[str, str] = {
            field: info.data[field] for field in ("username", "email") if field in info.data
        }
        if (why := weakness(password, names)) is not None:
            raise ValueError(f"password {why}")
        return password

    @field_validator("email")
    @classmethod
    def _plain(cls, email: str) -> str:
        local, _, domain = email.partition("@")
        if any(unicodedata.category(character)[0] in "CZ" for character in email):
            raise ValueError(f"email is {email[:60]!a}, which holds an invisible character; type it anew")
        if any("" in part.split(".") for part in (local, domain)):
            raise ValueError(f"email is {email[:60]!a}; no dot may stand first, last or beside another")
        return email


class LoginBody(Message):
    """POST /auth/login; `username` may be an e-mail address."""

    username: str = Field(min_length=1, max_length=254)
    password: str = Field(min_length=1, max_length=1024)


class EraseBody(Message):
    """The person's id once more: what is erased cannot be brought back."""

    confirm: str = Field(max_length=64)


class RefreshBody(Message):
    """POST /auth/refresh"""

    refresh_token: str = Field(min_length=1, max_length=512)


class RegisterBody(Message):
    """POST /datasets and POST /models"""

    name: Name
    description: LongText = ""
    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=100_000)


class ImportSourceBody(Message):
    """A place with files."""

    uri: str = Field(
        min_length=1,
        max_length=2000,
        description="https://…/archive.zip, s3://bucket/prefix, file:///folder/of/the/server,"
        " or hf://owner/name@revision.",
    )
    secret: SecretName | None = Field(None, description="Name of the workspace's secret that opens it.")


class ImportBody(Message):
    """POST /datasets/import and POST /models/import"""

    name: OptionalName = ""
    """The source's own name when empty."""
    description: LongText = ""
    source: ImportSourceBody


class UploadPart(Message):
    """One part that the client has put."""

    number: int = Field(ge=1, le=10_000)
    etag: str = Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")


class UploadedFile(Message):
    """One file whose parts are all put; those of an earlier session need not be named."""

    sha256: Line
    parts: tuple[UploadPart, ...] = Field((), description="In ascending order.")


class CompleteUploadBody(Message):
    """POST /datasets/{id}/upload/complete and POST /models/{id}/upload/complete"""

    upload_id: Line
    files: tuple[UploadedFile, ...] = ()
    """Only the files that the session asked for; others are in the store already."""


class SecretBody(Message):
    """PUT /secrets/{name}; `value` is never answered again."""

    kind: SecretKind
    value: str = Field(
        min_length=1,
        max_length=8192,
        pattern=r"^[\x21-\x7e]+$",
        repr=False,
        description="The token, the password, the query string or the S3 secret key.",
    )
    username: Line = ""
    """Of kind ``basic``."""
    access_key: Line = ""
    """Of kind ``s3``."""
    endpoint_url: Line = ""
    """Of kind ``s3``, such as ``https://s3.eu-central-1.amazonaws.com``."""
    region: Line = "us-east-1"
    """Of kind ``s3``."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        # The message must not hold the value.
        needed = {"basic": ("username",), "s3": ("access_key", "endpoint_url")}.get(self.kind, ())
        missing = [field for field in needed if not getattr(self, field)]
        if missing:
            raise ValueError(f"a secret of kind {self.kind} needs {' and '.join(missing)}")
        if self.kind == "s3" and not self.endpoint_url.startswith(("https://", "http://")):
            raise ValueError("endpoint_url must begin with https:// or http://")
        return self


class CreateJobBody(Message):
    """POST /jobs"""

    name: OptionalName = ""
    dataset_id: DatasetId
    model_id: ModelId
    hyperparameters: Hyperparameters = Hyperparameters()
    pool: str = Field(DEFAULT_POOL, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    priority: Priority = "normal"
    labels: dict[ShortName, Line] = Field(default_factory=dict, max_length=64)


class StopJobBody(Message):
    """POST /jobs/{id}/stop"""

    mode: StopMode = "graceful"
    reason: Reason = ""


class EnrollAgentBody(Message):
    """POST /agents/enroll"""

    name: ShortName
    pool: str = Field(DEFAULT_POOL, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")


class CollectBody(Message):
    """POST /storage/collections"""

    dry_run: bool = False


class EnrolmentTokenBody(Message):
    """POST /agents/{id}/enrolment-token"""

    expires_in_seconds: int = Field(3600, ge=60, le=30 * 86400)


class IssuedEnrolmentToken(Message):
    """What one node may join with; shown once."""

    agent_id: AgentId
    token: str = Field(repr=False)
    expires_at: datetime
    command_id: str


class Signed(Message):
    """A body that a node signs with its own NATS key."""

    signature: str = Field(min_length=88, max_length=88, pattern=r"^[A-Za-z0-9+/]{86}==$")
    """Of the proof that belongs to the body: 64 bytes in base 64."""

    @property
    def signature_bytes(self) -> bytes:
        return base64.b64decode(self.signature)


class JoinAgentBody(Signed):
    """POST /agents/join; the signature is of `joining_proof`."""

    token: str = Field(min_length=1, max_length=512, repr=False)
    public_key: NatsPublicKey
    """Of the node's own NATS key; its seed stays where it is."""


def joining_proof(token: str) -> bytes:
    """What a node signs to prove that the key it brings is its own."""
    return f"kinora agent joining\n{token}".encode()


class NatsRight(Message):
    """The right to speak on NATS; of no use without the seed of the key that it names."""

    jwt: str
    expires_at: datetime


class JoinedAgent(NatsRight):
    """Who the node is from now on."""

    agent_id: AgentId
    organization_id: OrganizationId
    pool: str
    name: str
    nats_url: str


class RenewAgentBody(Signed):
    """POST /agents/{id}/renew; the signature is of `renewal_proof`."""

    asked_at: AwareDatetime


def renewal_proof(agent_id: str, asked_at: datetime) -> bytes:
    """What a node signs to prove that it asks now."""
    return f"kinora agent renewal\n{agent_id}\n{asked_at.isoformat()}".encode()


class RevokeAgentBody(Message):
    """POST /agents/{id}/revoke"""

    reason: Reason = ""


class ReplayParkedBody(Message):
    """POST /projections/{name}/replay"""

    stream_id: StreamId | None = None
    """Without it, every stream that the view has parked."""


class UploadTargetPart(Message):
    """Where one part goes; PUT exactly its bytes."""

    number: int
    url: str
    size_bytes: int


class UploadTargetFile(Message):
    """One file that the store still needs."""

    path: str
    sha256: str
    parts: tuple[UploadTargetPart, ...]
    """Those that the store lacks; none when only the completion is missing."""


class UploadSession(Message):
    """What POST …/upload answers: everything else of the declared files is already stored."""

    upload_id: str
    part_size_bytes: int
    files: tuple[UploadTargetFile, ...]
    remaining_bytes: int
    """Of all files that are not stored yet, also of those that a later session asks for."""
    expires_in_seconds: int


Status = Literal[
    "importing", "import_failed", "uploading", "uploaded", "validating", "ready", "rejected", "deleted"
]
"""Of a dataset or model."""
