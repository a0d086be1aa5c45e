"""The first person and the first agent of an embedded installation, made over REST like everybody else."""

import secrets
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import SecretStr, ValidationError

from kinora.client import ApiError, Client, Credentials, at
from kinora.enrolment import join, kept_seed
from kinora.local.folder import DataFolder
from kinora.local.private_file import revealed_json, write_private
from kinora.local.role_settings import EnrolledAgent
from kinora.settings import SettingsRefused
from schemas.api import EnrollAgentBody, SignupBody
from schemas.base import Message
from schemas.ids import Prefix, derived_id

M = TypeVar("M", bound=Message)

AGENT_NAME = "local"


def signed_up_owner(folder: DataFolder, url: str, username: str) -> Credentials:
    """The owner's credentials; signs them up the first time. Blocks on HTTP.

    The password is kept before the sign-up is sent, so a crash in between leaves nobody locked out.

    Raises:
        KinoraError: when the name is taken by somebody else, or the service refuses.
    """
    kept = _read(folder.credentials, Credentials)
    if kept is None:
        kept = Credentials(url=url, username=username, password=SecretStr(secrets.token_urlsafe(24)))
    credentials = kept.model_copy(update={"url": url})
    if credentials != _read(folder.credentials, Credentials):
        write_private(folder.credentials, revealed_json(credentials))
    if credentials.organization_id is None:
        _sign_up(credentials)
        with Client(credentials) as client:
            me = client.get("/users/me")
        credentials = credentials.model_copy(update={"organization_id": me["organization_id"]})
        write_private(folder.credentials, revealed_json(credentials))
    return credentials


def enrolled_agent(folder: DataFolder, credentials: Credentials) -> EnrolledAgent:
    """Who the local agent is; the first time it joins as any other node does. Blocks on HTTP.

    Raises:
        KinoraError: when the service refuses.
    """
    kept = _read(folder.agent, EnrolledAgent)
    if kept is not None:
        return kept
    assert credentials.organization_id is not None  # noqa: S101 - signed_up_owner made sure
    # The same key for ever: a crash before the answer is kept does not enrol a second agent.
    key = derived_id(Prefix.COMMAND, credentials.organization_id, "enrol the local agent")
    with Client(credentials) as client:
        agent = client.post("/agents/enroll", EnrollAgentBody(name=AGENT_NAME), key=key)
        issued = client.post(at("agents", agent["id"], "enrolment-token"))
    seed = kept_seed(folder.agent_seed)
    joined = join(credentials.url, issued["token"], seed)
    enrolled = EnrolledAgent(
        agent_id=joined.agent_id,
        organization_id=joined.organization_id,
        pool=joined.pool,
        name=joined.name,
        jwt=joined.jwt,
        seed=seed,
    )
    write_private(folder.agent, revealed_json(enrolled))
    folder.agent_seed.unlink()
    return enrolled


def _sign_up(credentials: Credentials) -> None:
    password = credentials.password.get_secret_value()
    body = SignupBody(
        username=credentials.username, email=f"{credentials.username}@localhost", password=password
    )
    answer = httpx.post(
        f"{credentials.url}/api/v1/auth/signup", json=body.model_dump(), timeout=30, trust_env=False
    )
    # 409: an earlier start got this far. If the name is somebody else's, the login that follows tells.
    if answer.is_error and answer.status_code != httpx.codes.CONFLICT:
        raise ApiError(answer.status_code, answer.json())


def _read(path: Path, kind: type[M]) -> M | None:
    try:
        return kind.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        fields = ", ".join(str(part["loc"]) for part in error.errors(include_input=False))
        raise SettingsRefused(f"{path} is damaged at {fields}; restore it from a backup") from None
