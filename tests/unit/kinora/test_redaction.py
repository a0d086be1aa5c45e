"""Secrets do not get past the log's last net, however they stand in a line; other words do."""

import json
import time

import pytest
from pydantic import BaseModel, SecretStr

from kinora.redaction import REDACTED, redactor, secret_values

JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ1c3JfMSJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abcdef0123456789", "abcdef0123456789"),
        (f"token {JWT} refused", "c2lnbmF0dXJl"),
        ("key knr_01ab_S3cretPart-x was used", "S3cretPart"),
        ("PUT http://s3/b/k?X-Amz-Credential=AK%2F1&X-Amz-Signature=0a1b2c3d&x=1", "0a1b2c3d"),
        ("PUT http://s3/b/k?X-Amz-Credential=AK%2F1&X-Amz-Signature=0a1b2c3d&x=1", "AK%2F1"),
        ("connect to nats://control:hunter22@127.0.0.1:4222", "hunter22"),
        ('{"username": "ada", "password": "hun\\"ter22"}', "ter22"),
        ("{'refresh_token': 'opaque-value-1'}", "opaque-value-1"),
        ("host=/run password=hunter22 port=5432", "hunter22"),
        ("the store said s3_secret_key='hunter22' is wrong", "hunter22"),
        ("SUAGM7MVXBVHXQH3TUWFSSZ3ORHXHZ7RBHC2MSNLHVSDLGTQFKRMO5LJ2A of a user", "SUAGM7MV"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----", "MC4CAQ"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_of_a_line_of_json(text: str, secret: str) -> None:
    line = json.dumps({"event": "failed", "detail": text})

    cleaned = redactor()(line)

    assert secret not in cleaned
    assert REDACTED in json.loads(cleaned)["detail"]


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "request", "path": "/api/v1/jobs/job_0192f0c1", "status": 202, "milliseconds": 1.5}',
        '{"event": "trained", "tokens_per_second": 812.5, "tokens": 12}',
        '{"event": "the access token has expired; refresh it", "code": "token_expired"}',
    ],
)
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert redactor()(line) == line


@pytest.mark.parametrize(
    "part", ["a-", "password-", "eyJ-", "\\", "password='\\", 'token="', "bearer ", "://a:", "-knr_a", "key "]
)
def test_no_path_that_anybody_asks_for_keeps_a_process_busy(part: str) -> None:
    redact = redactor()
    line = json.dumps({"event": "request", "path": "/password='" + part * (64_000 // len(part))})

    began = time.process_time()
    redact(line)

    # Milliseconds, as it grows with the length; squared it would take minutes, and for ever at worst.
    assert time.process_time() - began < 5


def test_a_process_never_writes_what_its_own_settings_hold() -> None:
    class Inner(BaseModel):
        key: SecretStr = SecretStr("line one\nline two")

    class Settings(BaseModel):
        password: SecretStr = SecretStr("plain-words")
        inner: tuple[Inner, ...] = (Inner(),)
        short: SecretStr = SecretStr("a")

    line = json.dumps({"event": "it said plain-words and line one\nline two"})

    cleaned = redactor(secret_values(Settings()))(line)

    assert json.loads(cleaned)["event"] == f"it said {REDACTED} and {REDACTED}"
