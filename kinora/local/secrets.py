"""Everything secret of one installation, made once and kept in one private file."""

import secrets
import time
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr, ValidationError

from command_api.nats_auth.keys import new_seed
from kinora.local.errors import DataFolderRefused
from kinora.local.folder import DataFolder
from kinora.local.private_file import revealed_json, write_private
from schemas.base import Message


class LocalSecrets(Message):
    """Passwords of the embedded servers and keys of the control plane."""

    instance_id: str
    """Tells this installation's servers from others; not secret, but made at the same time."""
    postgres_superuser_password: SecretStr
    postgres_password: SecretStr
    nats_operator_seed: SecretStr
    """Signs the accounts of the embedded message server."""
    nats_system_seed: SecretStr
    nats_control_seed: SecretStr
    nats_agents_seed: SecretStr
    nats_subscribers_seed: SecretStr
    """Of the accounts; each signs its users."""
    made_at: int
    """Unix seconds."""
    s3_access_key: str
    s3_secret_key: SecretStr
    token_private_key_pem: SecretStr
    personal_key_hex: SecretStr
    index_key_hex: SecretStr


def kept_secrets(folder: DataFolder) -> LocalSecrets:
    """The data folder's secrets; generated the first time.

    Raises:
        DataFolderRefused: when the file is damaged, or missing although there are data that it opens.
    """
    try:
        return LocalSecrets.model_validate_json(folder.secrets.read_text())
    except FileNotFoundError:
        if (folder.postgres / "data").exists():
            raise DataFolderRefused(
                f"{folder.secrets} is missing, and new secrets would not open the data in {folder.postgres};"
                " restore it from a backup, or set KINORA_HOME to a new folder"
            ) from None
    except ValidationError as error:
        # The error's own text would quote secrets.
        fields = ", ".join(str(part["loc"]) for part in error.errors(include_input=False))
        raise DataFolderRefused(
            f"{folder.secrets} is damaged at {fields}; restore it from a backup"
        ) from None
    made = new_secrets()
    write_private(folder.secrets, revealed_json(made))
    return made


def _password() -> SecretStr:
    return SecretStr(secrets.token_urlsafe(32))


OF_THE_SERVERS = frozenset(
    {"instance_id", "postgres_superuser_password", "postgres_password", "s3_access_key", "s3_secret_key"}
)
"""What belongs to the servers of one data folder; everything else belongs to the data, wherever they are."""


def moved_secrets(former: Mapping[str, object]) -> LocalSecrets:
    """Secrets for new servers that hold the data of the installation whose secrets were `former`.

    Raises:
        DataFolderRefused: when a field is wrong.
    """
    of_data = {name: value for name, value in former.items() if name not in OF_THE_SERVERS}
    known = {name: value for name, value in of_data.items() if name in LocalSecrets.model_fields}
    try:
        return LocalSecrets.model_validate(new_secrets().model_dump() | known)
    except ValidationError as error:
        fields = ", ".join(str(part["loc"]) for part in error.errors(include_input=False))
        raise DataFolderRefused(f"the keys of the backup are damaged at {fields}") from None


def new_secrets() -> LocalSecrets:
    """Secrets of a new installation."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return LocalSecrets(
        instance_id=secrets.token_hex(8),
        postgres_superuser_password=_password(),
        postgres_password=_password(),
        nats_operator_seed=SecretStr(new_seed("operator")),
        nats_system_seed=SecretStr(new_seed("account")),
        nats_control_seed=SecretStr(new_seed("account")),
        nats_agents_seed=SecretStr(new_seed("account")),
        nats_subscribers_seed=SecretStr(new_seed("account")),
        made_at=int(time.time()),
        s3_access_key=f"KNR{secrets.token_hex(8).upper()}",
        s3_secret_key=SecretStr(secrets.token_hex(20)),
        token_private_key_pem=SecretStr(pem),
        personal_key_hex=SecretStr(secrets.token_hex(32)),
        index_key_hex=SecretStr(secrets.token_hex(32)),
    )
