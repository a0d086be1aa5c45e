"""Addresses and credentials of the three servers, as every process receives them.

Only `kinora.settings` reads environment and files; packages get these as arguments.
Secrets are `SecretStr`, so that they never show in a log or a traceback.
"""

from ipaddress import ip_address
from typing import Self

from pydantic import Field, SecretStr, model_validator

from schemas.base import Message


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class PostgresSettings(Message):
    """How to reach the database."""

    host: str
    """A host name, or the folder of a Unix socket."""
    port: int = 5432
    dbname: str = "kinora"
    user: str = "kinora"
    password: SecretStr

    def conninfo(self) -> str:
        """A libpq connection string. It holds the password: never log it."""
        parts = {
            "host": self.host,
            "port": self.port,
            "dbname": self.dbname,
            "user": self.user,
            "password": self.password.get_secret_value(),
        }
        return " ".join(f"{name}={_quoted(str(value))}" for name, value in parts.items())


class NatsAccount(Message):
    """An account of NATS, and what signs its users."""

    account: str = Field(pattern=r"^A[A-Z2-7]{55}$")
    """Its public key."""
    signing_seed: SecretStr
    """Its own seed, or that of one of its signing keys."""


class NatsSettings(Message):
    """How the control plane reaches NATS, and signs users there: its own and the agents'."""

    url: str
    agents_url: str | None = None
    """Address for agents, where it differs."""
    subscribers_url: str | None = None
    """Address for subscribers of the organization's events, where it differs."""
    control: NatsAccount
    """Has every stream, and none but the control plane in it."""
    agents: NatsAccount
    subscribers: NatsAccount
    user_seconds: int = Field(86400, ge=2)
    """How long a user's JWT is valid; connections renew theirs after two thirds of it."""


class NatsUser(Message):
    """How to reach NATS as one user, with the rights that its JWT names."""

    url: str
    jwt: str
    seed: SecretStr
    """The user's own key; whoever signed the JWT has never seen it."""


class S3Settings(Message):
    """How to reach the object store; agents never get these."""

    endpoint_url: str
    bucket: str = "kinora"
    region: str = "us-east-1"
    access_key: str
    secret_key: SecretStr
    presign_seconds: int = Field(900, ge=30)


class MetricsSettings(Message):
    """Where a process without an HTTP interface of its own shows its metrics and its health."""

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    token: SecretStr | None = None
    """What a scraper sends as `Authorization: Bearer …`; only on loopback may it be left out."""

    @model_validator(mode="after")
    def _closed_to_strangers(self) -> Self:
        if self.token is None and not _is_loopback(self.host):
            raise ValueError(f"host {self.host} can be reached from elsewhere; set a token, or 127.0.0.1")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
