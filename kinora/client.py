"""The REST client of the CLI and the demo: logs in, sends idempotency keys, turns problems into errors."""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import SecretStr, ValidationError

from kinora.local.private_file import revealed_json, write_private
from schemas.base import Message
from schemas.errors import FieldError, KinoraError
from schemas.ids import Prefix, new_id

Json = dict[str, Any]


class Unreachable(KinoraError):
    """Nothing answers at the service's address."""

    code = "unreachable"
    retryable = True


class NoCredentials(KinoraError):
    """The CLI does not know whom to log in as."""

    code = "no_credentials"


class BadId(KinoraError):
    """An id that cannot be one."""

    code = "bad_id"


class BadAddress(KinoraError):
    """The service's address cannot be one."""

    code = "bad_address"


class ApiError(KinoraError):
    """The service refused; carries its problem document (RFC 9457)."""

    def __init__(self, status: int, problem: Json) -> None:
        errors = tuple(
            FieldError(pointer=e.get("pointer", ""), code=e.get("code", ""), message=e.get("message", ""))
            for e in problem.get("errors") or ()
        )
        message = problem.get("detail") or problem.get("title") or f"the service answered {status}"
        super().__init__(message, code=problem.get("code") or f"http_{status}", errors=errors)
        self.status = status
        self.problem = problem


class Credentials(Message):
    """Where the service is and whom to be there; kept in a 0600 file."""

    url: str
    username: str
    password: SecretStr
    organization_id: str | None = None

    @classmethod
    def find(cls, home: Path) -> "Credentials":
        """From KINORA_URL, KINORA_USERNAME and KINORA_PASSWORD, else from the data folder's credentials file.

        Raises:
            NoCredentials: when neither is there.
        """
        names = ("KINORA_URL", "KINORA_USERNAME", "KINORA_PASSWORD")
        values = [os.environ.get(name) for name in names]
        if all(values):
            return cls(url=str(values[0]), username=str(values[1]), password=SecretStr(str(values[2])))
        file = home / "credentials.json"
        try:
            return cls.model_validate_json(file.read_text())
        except FileNotFoundError:
            raise NoCredentials(
                f"no credentials file at {file}; start the service with `kinora up`,"
                f" point KINORA_HOME at its data folder, or set {', '.join(names)}"
            ) from None
        except ValidationError as error:
            # Neither message nor cause may quote the input: it holds the password.
            wrong = ", ".join(
                f"{'.'.join(map(str, part['loc'])) or 'JSON'}: {part['msg']}"
                for part in error.errors(include_input=False, include_url=False, include_context=False)
            )
            raise NoCredentials(f"{file} is damaged ({wrong}); restore it from a backup") from None
        except OSError as error:
            raise NoCredentials(f"{file} cannot be read: {error.strerror}; check who owns it") from error


def _proof(credentials: Credentials, salt: str) -> str:
    """Of these credentials; slow to compute, so that the file does not help to guess the password."""
    parts = (credentials.url, credentials.username, credentials.password.get_secret_value())
    return hashlib.scrypt("\0".join(parts).encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1).hex()


class _Session(Message):
    """An access token and when it ends, in Unix seconds; for those who know the password."""

    salt: str
    proof: str
    access_token: SecretStr
    ends: float


def at(*segments: str) -> str:
    """An API path of these segments, whatever a person typed as an id.

    Raises:
        BadId: when one is empty.
    """
    if not all(segments):
        raise BadId("the id is empty; `ls` shows the ids that there are")
    return "/" + "/".join(quote(segment, safe="") for segment in segments)


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL()
    if address.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:-]+", address.host):
        raise BadAddress(f"{url[:200]!r} is no address of a service; write http://HOST:PORT")
    return address


class Client:
    """One person's session with the service. Not for use from several threads."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        timeout: float = 60.0,
        patience_seconds: float = 3.0,
        quota_seconds: float = 60.0,
        session_file: Path | None = None,
    ) -> None:
        """Requests are repeated for `patience_seconds` while nothing answers or a 503 says that it passes.

        A 429 is repeated as often as the service says that it will be taken within `quota_seconds`.

        With a `session_file`, the access token is kept there for the next process until it ends.
        """
        self.credentials = credentials
        self._http = httpx.Client(base_url=_address(credentials.url), timeout=timeout, trust_env=False)
        self._patience_seconds = patience_seconds
        self._quota_seconds = quota_seconds
        self._token: str | None = None
        self._token_ends = 0.0
        self._position: int | None = None
        self._session_file = session_file
        self._recall()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    @property
    def websocket_url(self) -> str:
        """Address of the live feed."""
        return self.credentials.url.replace("http", "ws", 1).rstrip("/") + "/api/v1/events/ws"

    def token(self) -> str:
        """A valid access token; logs in when there is none or it is about to end."""
        if self._token is None or time.time() > self._token_ends - 30:
            answer = self._send(
                "POST",
                "/api/v1/auth/login",
                json={
                    "username": self.credentials.username,
                    "password": self.credentials.password.get_secret_value(),
                },
            )
            self._token = str(answer["access_token"])
            self._token_ends = time.time() + float(answer.get("expires_in", 600))
            self._remember()
        return self._token

    def forget_token(self) -> None:
        """Log in anew before the next request, because the service did not take the token."""
        self._token = None

    def get(self, path: str, **params: Any) -> Json:
        """GET a resource under /api/v1, as it is after every command that this client has sent."""
        given = {"min_position": self._position} | params
        return self._authorized("GET", path, params={k: v for k, v in given.items() if v is not None})

    def post(self, path: str, body: Message | Json | None = None, *, key: str | None = None) -> Json:
        """POST a command; the same `key` makes a repeat harmless."""
        content = body.model_dump(mode="json") if isinstance(body, Message) else body
        return self._authorized(
            "POST", path, json=content, headers={"Idempotency-Key": key or new_id(Prefix.COMMAND)}
        )

    def put(self, path: str, body: Json) -> Json:
        """PUT a resource; a repeat changes nothing."""
        return self._authorized("PUT", path, json=body)

    def delete(self, path: str) -> None:
        """DELETE a resource."""
        self._authorized("DELETE", path)

    def pages(self, path: str, **params: Any) -> Iterator[Json]:
        """Every item of a list, page by page."""
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, **params)
            yield from page["data"]
            if not page.get("has_more"):
                return
            cursor = page["next_cursor"]

    @contextlib.contextmanager
    def download(self, path: str, **params: Any) -> Iterator[httpx.Response]:
        """An answer under /api/v1 whose body is read as it arrives.

        Raises:
            Unreachable: nothing answers, or the connection breaks off while the body is read.
        """
        headers = {"Authorization": f"Bearer {self.token()}"}
        given = {key: value for key, value in params.items() if value is not None}
        try:
            with self._http.stream("GET", f"/api/v1{path}", params=given, headers=headers) as response:
                if not response.is_success:
                    response.read()
                    raise ApiError(response.status_code, _problem(response) or {})
                yield response
        except httpx.TransportError as error:
            raise Unreachable(f"{self.credentials.url} does not answer ({error})") from error

    def _authorized(self, method: str, path: str, **request: Any) -> Json:
        headers = dict(request.pop("headers", {})) | {"Authorization": f"Bearer {self.token()}"}
        try:
            return self._send(method, f"/api/v1{path}", headers=headers, **request)
        except ApiError as error:
            if error.status != 401:
                raise
        # The token is of an earlier process or an earlier service; a fresh one decides.
        self.forget_token()
        headers["Authorization"] = f"Bearer {self.token()}"
        return self._send(method, f"/api/v1{path}", headers=headers, **request)

    def _answer(self, response: httpx.Response) -> Json:
        try:
            return dict(response.json()) if response.content else {}
        except (ValueError, TypeError) as error:
            raise self._no_kinora(response) from error

    def _no_kinora(self, response: httpx.Response) -> Unreachable:
        return Unreachable(
            f"what answers at {self.credentials.url} is no Kinora (status {response.status_code});"
            " check the address"
        )

    def _recall(self) -> None:
        if self._session_file is None or not self._session_file.exists():
            return
        try:
            kept = _Session.model_validate_json(self._session_file.read_text())
            mine = time.time() < kept.ends and _proof(self.credentials, kept.salt)
        except (ValueError, OSError):
            return  # a login makes another one
        if mine and hmac.compare_digest(mine, kept.proof):
            self._token, self._token_ends = kept.access_token.get_secret_value(), kept.ends

    def _remember(self) -> None:
        if self._session_file is None or not self._session_file.parent.is_dir():
            return
        salt = secrets.token_hex(16)
        session = _Session(
            salt=salt,
            proof=_proof(self.credentials, salt),
            access_token=SecretStr(self._token or ""),
            ends=self._token_ends,
        )
        # Only a convenience: where it cannot be kept, the next process logs in.
        with contextlib.suppress(OSError):
            write_private(self._session_file, revealed_json(session))

    def _send(self, method: str, path: str, **request: Any) -> Json:
        # Safe to repeat: reads have no effect, and every POST carries its idempotency key.
        begun = time.monotonic()
        deadline, quota_deadline = begun + self._patience_seconds, begun + self._quota_seconds
        for attempt in count():
            last = time.monotonic() > deadline
            pause = min(2.0, 0.2 * 2**attempt)
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                if last:
                    raise Unreachable(
                        f"{self.credentials.url} does not answer ({error}); start it with `kinora up`"
                    ) from error
            else:
                if position := response.headers.get("X-Event-Position"):
                    self._position = max(self._position or 0, int(position))
                if response.is_success:
                    return self._answer(response)
                problem = _problem(response)
                if problem is None and response.status_code not in (502, 503, 504):  # a proxy's are meant
                    raise self._no_kinora(response)
                problem = problem or {"detail": f"{self.credentials.url} answers {response.status_code}"}
                if response.status_code == 429:
                    pause = _retry_after(response)
                    last = time.monotonic() + pause > quota_deadline
                elif response.status_code != 503:
                    last = True
                if last or not problem.get("retryable"):
                    raise ApiError(response.status_code, problem)
            time.sleep(pause)
        raise AssertionError("counting never ends")


def _retry_after(response: httpx.Response) -> float:
    """Seconds; the service sends no dates."""
    given = response.headers.get("Retry-After", "")
    return float(given) if given.isdigit() else 1.0


def _problem(response: httpx.Response) -> Json | None:
    """The problem document of a refusal; None when it is not one of ours."""
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) and "code" in body else None
