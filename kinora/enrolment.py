"""How this machine becomes an agent: it makes its own key, spends a token, and keeps what it is told."""

import base64
import time
from itertools import count
from pathlib import Path

import httpx
from pydantic import SecretStr, ValidationError

from command_api.nats_auth.keys import new_seed, public_key, sign
from kinora.client import ApiError, Unreachable
from kinora.local.private_file import write_private
from schemas.api import JoinAgentBody, JoinedAgent, joining_proof
from schemas.errors import KinoraError

_PATIENCE_SECONDS = 30.0


class NotKinora(KinoraError):
    """Something else answers at the address."""

    code = "not_kinora"


def kept_seed(path: Path) -> SecretStr:
    """The node's key, made the first time; kept before it is used, so that a repeat brings the same one."""
    try:
        return SecretStr(path.read_text().strip())
    except FileNotFoundError:
        seed = new_seed("user")
        write_private(path, f"{seed}\n")
        return SecretStr(seed)


def join(url: str, token: str, seed: SecretStr) -> JoinedAgent:
    """Spend the token. Blocks on HTTP; a repeat with the same seed is answered alike.

    Raises:
        KinoraError: nothing answers there, or the token is refused.
    """
    key = seed.get_secret_value()
    signature = base64.b64encode(sign(key, joining_proof(token))).decode()
    body = JoinAgentBody(token=token, public_key=public_key(key), signature=signature)
    address = f"{url.rstrip('/')}/api/v1/agents/join"
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for attempt in count():
        try:
            answer = httpx.post(address, json=body.model_dump(), timeout=30, trust_env=False)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Unreachable(f"{url} does not answer ({error}); check the address") from error
        if answer.status_code not in (429, 503) or time.monotonic() > deadline:
            break
        time.sleep(min(5.0, 0.5 * 2**attempt))
    try:
        if answer.is_success:
            return JoinedAgent.model_validate_json(answer.content)
        problem = answer.json()
    except (ValidationError, ValueError) as error:
        raise NotKinora(
            f"{url} answers, but not as the API of Kinora ({answer.status_code}); check the address"
        ) from error
    raise ApiError(answer.status_code, problem)
