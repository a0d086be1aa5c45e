"""Addresses and credentials of the three servers, as every process receives them.

Only `kinora.settings` reads environment and files; packages get these as arguments.
Secrets are `SecretStr`, so that they never show in a log or a traceback.
"""

from pydantic import Field, SecretStr

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


class NatsSettings(Message):
    """How to reach NATS, as one role."""

    url: str
    user: str
    password: SecretStr


class S3Settings(Message):
    """How to reach the object store; agents never get these."""

    endpoint_url: str
    bucket: str = "kinora"
    region: str = "us-east-1"
    access_key: str
    secret_key: SecretStr
    presign_seconds: int = Field(900, ge=30)
