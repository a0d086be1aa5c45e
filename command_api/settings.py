"""What the control plane's processes need to run."""

from ipaddress import ip_network
from os.path import normpath
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from limits import parse_many
from pydantic import AfterValidator, Field, SecretStr

from schemas.base import Message
from schemas.settings import MetricsSettings, NatsSettings, PostgresSettings, S3Settings


class ControlSecrets(Message):
    """Keys of the control plane. Losing them voids tokens (signing) or personal fields (encryption)."""

    token_private_key_pem: SecretStr
    """Ed25519 private key that signs access tokens."""
    former_token_public_keys_pem: tuple[str, ...] = ()
    """Public keys whose tokens are still taken, for the ten minutes after the signing key was replaced."""
    personal_key_hex: SecretStr
    """256-bit key that wraps each person's own key."""
    index_key_hex: SecretStr
    """256-bit HMAC key of uniqueness rows, command hashes and list cursors."""


def _quota(text: str) -> str:
    if text:
        try:
            parse_many(text)
        except ValueError:
            raise ValueError(f"{text!r} is no quota; write 30/minute or 30/minute; 100/hour") from None
    return text


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if (
        parts.scheme not in ("http", "https")
        or not parts.netloc
        or text != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError(f"{text!r} is no origin; write https://console.example.org, without a path")
    return text


def _network(text: str) -> str:
    return str(ip_network(text))


def _folder(text: str) -> str:
    if not Path(text).is_absolute() or normpath(text) == "/":
        raise ValueError(f"{text!r} is no folder to import from; write an absolute path, but not /")
    return normpath(text)


Quota = Annotated[str, AfterValidator(_quota)]
"""How much is taken in which time, such as ``30/minute; 100/hour``; empty for without limit."""
Origin = Annotated[str, AfterValidator(_origin)]
Network = Annotated[str, AfterValidator(_network)]
Folder = Annotated[str, AfterValidator(_folder)]


class RateSettings(Message):
    """How often something may be asked for. People's own quotas are per person, the others per address."""

    storage_uri: SecretStr = SecretStr("async+memory://")
    """Where the counts are: in this process, or shared by all with ``async+redis://`` or ``async+valkey://``."""
    general: Quota = "6000/minute"
    """Every request with a valid token."""
    anonymous: Quota = "1200/minute"
    """Every request without one, per address."""
    signup: Quota = "60/minute; 600/hour"
    login: Quota = "120/minute; 1200/hour"
    refresh: Quota = "120/minute; 1200/hour"
    enrolment: Quota = "120/minute; 1200/hour"
    """Nodes that join or renew their right, per address."""
    login_account: Quota = "30/minute; 60/15 minutes; 100/hour"
    """Attempts on one account from one address; a success begins anew."""
    login_elsewhere: Quota = "100/hour; 300/day"
    """Attempts on one account from all addresses together, but those it has logged in from."""
    uploads: Quota = "1200/minute"
    job_creation: Quota = "1200/minute"
    event_replay: Quota = "1200/minute"
    """Pages of the event log, and feeds opened."""
    event_export: Quota = "60/minute"
    """Downloads of the event log."""
    feeds: int = Field(64, ge=1)
    """Open WebSockets and event streams of one person in this process."""


class ImportSettings(Message):
    """What may be imported, and from where; set alike in the API and in the orchestrator."""

    allowed_networks: tuple[Network, ...] = ()
    """Private networks that imports may reach all the same, such as ``10.1.0.0/16``; none by default."""
    hub_url: str = "https://huggingface.co"
    """Where ``hf://`` leads; empty where there is no network."""
    max_bytes: int = Field(2**38, ge=1)
    """Of one import, packed and unpacked alike."""
    max_files: int = Field(100_000, ge=1)
    max_seconds: float = Field(6 * 3600, gt=0)
    at_once: int = Field(2, ge=1)
    reserve_bytes: int = Field(2**30, ge=0)
    """Left free on the disk of the work folder."""


class WebhookSettings(Message):
    """Where events may be delivered to, and how hard that is tried; set alike in API and orchestrator."""

    allowed_networks: tuple[Network, ...] = ()
    """Private networks that webhooks may reach all the same, by http too, such as ``127.0.0.0/8``."""
    at_once: int = Field(32, ge=1)
    """Deliveries under way, of all subscriptions."""
    at_once_each: int = Field(4, ge=1)
    """Of one subscription; events of one stream go one after the other all the same."""
    pending_each: int = Field(1000, ge=1)
    """Deliveries of one subscription that wait; what comes behind stays in the log until some are done."""
    timeout_seconds: float = Field(15.0, gt=0)
    """For a whole request: connecting, sending and the head of the answer."""
    keep_days: float = Field(30.0, gt=0)
    """How long the outcome of a delivery is kept."""


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
    max_body_seconds: float = Field(60.0, gt=0)
    """Until a body is there; whoever sends it more slowly holds nothing up for longer."""
    max_declaration_bytes: int = Field(32 * 2**20, ge=1024)
    """Of the body that registers a dataset or model: it names every file."""
    upload_part_bytes: int = Field(16 * 2**20, ge=5 * 2**20)
    max_upload_bytes: int = Field(2**40, ge=1)
    """Of one dataset or model."""
    max_subscriptions: int = Field(100, ge=1)
    """Of one organization, to its events."""
    allowed_origins: tuple[Origin, ...] = ()
    """Web pages of other origins that may call the API and the feed from a browser; exact, default none."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header that are taken beside the one in `public_url`."""
    trusted_proxies: tuple[Network, ...] = ()
    """Addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    rates: RateSettings = RateSettings()
    imports: ImportSettings = ImportSettings()
    webhooks: WebhookSettings = WebhookSettings()
    import_roots: tuple[Folder, ...] = ()
    """Folders of the server whose content the operator may import; none by default."""
    header_seconds: float = Field(15.0, gt=0)
    """How long a client may take to send a request's headers."""
    connections: int = Field(2000, ge=1)
    """Open at once in this process; more are answered 503."""
    disk_folder: Path | None = None
    """Where the servers keep their data, when that is on this machine: its free room is part of health."""
    metrics_token: SecretStr | None = None
    """What a scraper of /metrics sends; without it only the installation's operator may read them."""


class AuditorSettings(Message):
    """Compares stream and read models with the log; one active at a time."""

    postgres: PostgresSettings
    nats: NatsSettings
    round_seconds: float = Field(5.0, gt=0)
    """Between two looks where nothing asks for the next one sooner."""
    effort: float = Field(0.05, gt=0, le=1)
    """The part of its time that it may spend looking."""
    metrics: MetricsSettings | None = None
    """Without it nothing listens."""


class NatsOperatorSettings(Message):
    """What changes the account on the NATS server; with it a revoked agent is cut off at once."""

    operator_seed: SecretStr
    """Seed of the operator, or of one of its signing keys."""
    system_seed: SecretStr
    """Seed of the system account, which the server takes changes from."""


class OrchestratorSettings(Message):
    """Relay, inbox, claims, leases and policies; one active at a time."""

    postgres: PostgresSettings
    nats: NatsSettings
    nats_operator: NatsOperatorSettings | None = None
    """Without it a revoked agent is refused everywhere, but its connection lasts until its JWT expires."""
    s3: S3Settings
    secrets: ControlSecrets
    imports: ImportSettings = ImportSettings()
    webhooks: WebhookSettings = WebhookSettings()
    import_roots: tuple[Folder, ...] = ()
    """Folders of the server whose content the operator may import; none by default."""
    audit_key_pem: SecretStr | None = None
    """Ed25519 private key that signs the heads of the log's Merkle trees; without it none are signed."""
    audit_head_seconds: float = Field(10.0, gt=0)
    """How often a head is signed, at most: none without new events."""
    work_folder: str = ""
    """Where imported files are until they are in the store; a temporary folder when empty."""
    heartbeat_seconds: float = Field(5.0, gt=0)
    lease_seconds: float = Field(30.0, gt=0)
    republish_seconds: float = Field(10.0, gt=0)
    events_max_bytes: int = Field(4 * 2**30, ge=2**20)
    metrics: MetricsSettings | None = None
    """Without it nothing listens."""
    collect_every_seconds: float = Field(86400.0, ge=0)
    """How often objects that nobody needs are deleted; 0 for only when asked."""
    collect_grace_seconds: float = Field(86400.0, ge=3600)
    """How long what is not needed any more is kept still."""
    upload_idle_seconds: float = Field(7 * 86400.0, ge=3600)
    """After so long without a request, an upload session is closed and begun anew at the next one."""
