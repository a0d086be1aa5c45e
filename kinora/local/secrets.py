"""Everything secret of one installation, made once and kept in one private file."""

import json
import secrets
import time
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr, ValidationError

from command_api.nats_auth.keys import new_seed
from kinora.local.errors import DataFolderRefused
from kinora.local.folder import DataFolder
from kinora.local.private_file import revealed, revealed_json, write_private
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
    audit_private_key_pem: SecretStr
    """Signs what can be proven of the log. One that is made anew is served beside the former public key."""


OF_THE_SERVERS = frozenset(
    {"instance_id", "postgres_superuser_password", "postgres_password", "s3_access_key", "s3_secret_key"}
)
"""What belongs to the servers of one data folder; everything else belongs to the data, wherever they are."""
DATA_KEYS = ("token_private_key_pem", "personal_key_hex", "index_key_hex")
"""Without these nobody can log in to what the log holds."""
_IRREPLACEABLE = frozenset({*DATA_KEYS, "postgres_superuser_password", "postgres_password"})
"""What opens data that are already there; anything else can be made anew."""


def kept_secrets(folder: DataFolder) -> LocalSecrets:
    """The data folder's secrets; generated the first time, and completed by those that came later.

    Raises:
        DataFolderRefused: when the file is damaged, or missing although there are data that it opens.
    """
    try:
        former = json.loads(folder.secrets.read_text())
    except FileNotFoundError:
        if (folder.postgres / "data").exists():
            raise DataFolderRefused(
                f"{folder.secrets} is missing, and new secrets would not open the data in {folder.postgres};"
                " restore it from a backup, or set KINORA_HOME to a new folder"
            ) from None
        made = new_secrets()
        write_private(folder.secrets, revealed_json(made))
        return made
    except ValueError:
        former = None
    if not isinstance(former, dict):
        raise DataFolderRefused(f"{folder.secrets} is damaged: no JSON object; restore it from a backup")
    if lost := sorted(_IRREPLACEABLE - former.keys()):
        raise DataFolderRefused(f"{folder.secrets} lacks {', '.join(lost)}; restore it from a backup")
    try:
        completed = _completed(former)
    except ValidationError as error:
        raise DataFolderRefused(
            f"{folder.secrets} is damaged at {_fields(error)}; restore it from a backup"
        ) from None
    if LocalSecrets.model_fields.keys() - former.keys():
        # What we do not know stays: whoever wrote it may need it again.
        write_private(folder.secrets, json.dumps(former | revealed(completed), indent=2) + "\n")
    return completed


def moved_secrets(former: Mapping[str, object]) -> LocalSecrets:
    """Secrets for new servers that hold the data of the installation whose secrets were `former`.

    Raises:
        DataFolderRefused: when a field is wrong.
    """
    try:
        return _completed({name: value for name, value in former.items() if name not in OF_THE_SERVERS})
    except ValidationError as error:
        raise DataFolderRefused(f"the keys of the backup are damaged at {_fields(error)}") from None


def _completed(former: Mapping[str, object]) -> LocalSecrets:
    """What is known of `former`, and new ones for the rest."""
    known = {name: value for name, value in former.items() if name in LocalSecrets.model_fields}
    return LocalSecrets.model_validate(new_secrets().model_dump() | known)


def _fields(error: ValidationError) -> str:
    # The error's own text would quote secrets.
    return ", ".join(".".join(map(str, part["loc"])) for part in error.errors(include_input=False))


def _password() -> SecretStr:
    return SecretStr(secrets.token_urlsafe(32))


def _signing_key() -> SecretStr:
    key = Ed25519PrivateKey.generate()
    return SecretStr(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def new_secrets() -> LocalSecrets:
    """Secrets of a new installation."""
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
        token_private_key_pem=_signing_key(),
        personal_key_hex=SecretStr(secrets.token_hex(32)),
        index_key_hex=SecretStr(secrets.token_hex(32)),
        audit_private_key_pem=_signing_key(),
    )
