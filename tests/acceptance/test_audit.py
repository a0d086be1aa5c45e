"""The dependency audit: what it says of a vulnerable package, and of a service that does not answer."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[2] / ".ci" / "audit.py"
ADVISORY = {
    "id": "GHSA-0000-0000-0000",
    "schema_version": "1.0.0",
    "summary": "opens every door",
    "published": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "leaky", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}],
        }
    ],
}


class Advisories(BaseHTTPRequestHandler):
    """Answers as OSV does; it knows one vulnerable package."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["package"]["name"] == "leaky" and asked["version"] == "1.0"
        body = json.dumps({"vulns": [ADVISORY]} if known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def advisories() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def audit(tmp_path: Path, lock: str, **environment: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "requirements.lock"
    file.write_text(lock)
    return subprocess.run(
        [sys.executable, str(AUDIT), str(file)],
        env={name: value for name, value in os.environ.items() if name != "AUDIT"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_known_fails_the_check(advisories: str, tmp_path: Path) -> None:
    done = audit(tmp_path, "leaky==1.0\nsound==3.1\n", OSV_URL=advisories)
    assert done.returncode == 1, done.stderr
    assert "leaky 1.0: GHSA-0000-0000-0000, fixed in 2.0" in done.stdout
    assert "2 dependencies looked up, 1 known" in done.stdout


def test_sound_dependencies_pass(advisories: str, tmp_path: Path) -> None:
    done = audit(tmp_path, "leaky==2.0\nsound==3.1\n", OSV_URL=advisories, AUDIT="strict")
    assert (done.returncode, done.stdout.strip()) == (
        0,
        "audit: 2 dependencies looked up, 0 known vulnerabilities",
    )


@pytest.mark.parametrize(("strictness", "code"), [("", 0), ("strict", 1)])
def test_a_service_that_does_not_answer_is_told(tmp_path: Path, strictness: str, code: int) -> None:
    done = audit(tmp_path, "sound==3.1\n", OSV_URL="http://127.0.0.1:9/", AUDIT=strictness)
    assert done.returncode == code, done.stderr
    assert "audit: NOT DONE" in done.stdout
