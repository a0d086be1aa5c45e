"""Looks the locked dependencies up among known vulnerabilities; `make audit`, and part of `make check`.

Where the advisory service cannot be reached this says so and passes, because a laptop may be offline; with
AUDIT=strict, which CI sets where it has a network, that is a failure too. OSV_URL names another service.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PIP_AUDIT = str(Path(sys.executable).with_name("pip-audit"))


def main(lock: str = "requirements.lock") -> int:
    """0 when nothing is known, or nothing can be asked; 1 when something is."""
    strict = os.environ.get("AUDIT") == "strict"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [PIP_AUDIT, "--requirement", lock, "--no-deps", "--disable-pip", "--progress-spinner=off"]
        command += ["--vulnerability-service=osv", "--timeout=10", "--format=json", f"--output={report}"]
        if service := os.environ.get("OSV_URL"):
            command += ["--osv-url", service]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not report.exists():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"audit: NOT DONE, the advisory service gave no answer ({reason[:200]})")  # noqa: T201
            print("audit: nothing is known about the dependencies; run it again with a network")  # noqa: T201
            return 1 if strict else 0
        found = json.loads(report.read_text())["dependencies"]
    skipped = [each["name"] for each in found if "skip_reason" in each]
    known = [(each, vulnerability) for each in found for vulnerability in each.get("vulns", ())]
    for each, vulnerability in known:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"audit: {each['name']} {each['version']}: {vulnerability['id']}, fixed in {fixed}")  # noqa: T201
    if skipped:
        print(f"audit: not looked up: {', '.join(skipped)}")  # noqa: T201
    print(f"audit: {len(found) - len(skipped)} dependencies looked up, {len(known)} known vulnerabilities")  # noqa: T201
    return 1 if known or (skipped and strict) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
