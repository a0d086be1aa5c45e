"""A seed is the whole story: run again, in another process with other hashes, it comes to the same."""

import hashlib
import os
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib
from tests.simulation.run import simulate
verdict = simulate(5, trace_all=True)
text = "\\n".join([*verdict.trace, str((verdict.events, verdict.steps, verdict.faults))])
print(hashlib.sha256(text.encode()).hexdigest())
"""


@pytest.mark.slow_process
def test_a_seed_replays_from_its_number() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2
