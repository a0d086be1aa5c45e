"""What the control plane's two processes need to run."""

from pydantic import Field, SecretStr

from schemas.base import Message
from schemas.settings import NatsSettings, PostgresSettings, S3Settings


class ControlSecrets(Message):
    """Keys of the control plane. Losing them voids tokens (signing) or personal fields (encryption)."""

    token_private_key_pem: SecretStr
    """Ed25519 private key that signs access tokens."""
    personal_key_hex: SecretStr
    """256-bit key that wraps each person's own key."""
    index_key_hex: SecretStr
    """256-bit HMAC key of uniqueness rows, command hashes and list cursors."""


class ApiSettings(Message):
    """Routes and feed."""

    host: str = "127.0.0.1"
    port: int
    public_url: str
    postgres: PostgresSettings
    nats: NatsSettings
    s3: S3Settings
    secrets: ControlSecrets
    access_token_seconds: int = Field(600, ge=30)
    refresh_token_seconds: int = Field(30 * 86400, ge=60)
    max_body_bytes: int = Field(2**20, ge=1024)
    max_declaration_bytes: int = Field(32 * 2**20, ge=1024)
    """Of the body that registers a dataset or model: it names every file."""
    upload_part_bytes: int = Field(16 * 2**20, ge=5 * 2**20)
    max_upload_bytes: int = Field(2**40, ge=1)
    """Of one dataset or model."""


class OrchestratorSettings(Message):
    """Relay, inbox, claims, leases and policies; one active at a time."""

    postgres: PostgresSettings
    nats: NatsSettings
    s3: S3Settings
    secrets: ControlSecrets
    heartbeat_seconds: float = Field(5.0, gt=0)
    lease_seconds: float = Field(30.0, gt=0)
    republish_seconds: float = Field(10.0, gt=0)
    events_max_bytes: int = Field(4 * 2**30, ge=2**20)
