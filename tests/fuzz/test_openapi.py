"""The API against its own description: whatever is sent, the answer is a documented one, and never a 5xx.

`make test` sends the same few hundred requests each time. `make fuzz` sends many more, other ones each time,
and follows what earlier answers named.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.conftest import Target

LONG = os.environ.get("KINORA_FUZZ") == "long"
EXAMPLES = int(os.environ.get("KINORA_FUZZ_EXAMPLES", "300"))
"""Per operation, when it may take long."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)


def fuzz(target: Target, folder: Path, *options: str, phases: str, examples: int, ids: bool) -> None:
    configuration = folder / "schemathesis.toml"
    methods = "" if LONG else '[phases.coverage]\nunexpected-methods = ["OPTIONS"]\n'
    named = (f'"path.{name}" = "{value}"\n' for name, value in target.ids.items())
    configuration.write_text(methods + ("[parameters]\n" + "".join(named) if ids else ""))
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(configuration), "run"),
        f"{target.url}/openapi.json",
        *("--checks", ",".join(CHECKS)),
        *("--phases", phases),
        *("--max-examples", str(examples)),
        *("--suppress-health-check", "all"),
        "--no-color",
        *("--exclude-operation-id", "events_stream"),  # whose answer has no end
        # Looks into EVENTS, which the orchestrator makes: there is none here, and the answer is 503.
        *("--exclude-operation-id", "event_subscriptions_cursor"),
        *options,
    ]
    if not LONG:
        command += ["--generation-deterministic"]
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout


SHORT_COVERAGE = (
    *("--exclude-method", "GET"),
    *("--exclude-operation-id", "auth_login"),
    *("--exclude-operation-id", "auth_signup"),
    *("--exclude-operation-id", "jobs_create"),
)
ALL_PHASES = "examples,coverage,fuzzing,stateful"
LIMIT = pytest.mark.timeout(3600 if LONG else 300)


@LIMIT
def test_somebody_who_has_things(target: Target, tmp_path: Path) -> None:
    fuzz(
        target,
        tmp_path,
        *("--header", f"Authorization: Bearer {target.token}"),
        # Every wrong value in every place, of commands. The parameters of reads are the same everywhere; a
        # password costs a quarter of a second each, and a job has places for hundreds of wrong values.
        *(() if LONG else SHORT_COVERAGE),
        phases=ALL_PHASES if LONG else "coverage",
        examples=EXAMPLES if LONG else 2,
        ids=True,
    )


@LIMIT
def test_somebody_who_asks_for_anything(target: Target, tmp_path: Path) -> None:
    fuzz(
        target,
        tmp_path,
        *("--header", f"Authorization: Bearer {target.token}"),
        phases=ALL_PHASES if LONG else "fuzzing",
        examples=EXAMPLES if LONG else 3,
        ids=False,
    )


@LIMIT
def test_a_stranger(target: Target, tmp_path: Path) -> None:
    fuzz(
        target,
        tmp_path,
        phases=ALL_PHASES if LONG else "fuzzing",
        examples=EXAMPLES // 3 if LONG else 2,
        ids=False,
    )
