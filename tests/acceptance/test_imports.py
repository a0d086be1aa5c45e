"""A folder of the server and a secret, through the real CLI and processes, to a dataset that is ready."""

import json
import shutil
import subprocess

import pytest

from tests.service import KINORA, Service
from tests.system_fixtures import Samples

pytestmark = pytest.mark.timeout(240)
CANARY = "canary-93b1d0e7"


def test_a_folder_becomes_a_dataset(service: Service, samples: Samples) -> None:
    root = service.import_root
    shutil.copytree(samples.clips, root / "shapes")
    done = service.cli("datasets", "import", f"file://{root}/shapes", "--json")
    item = json.loads(done.stdout)
    assert (item["status"], item["name"], item["facts"]["clips"]) == ("ready", "shapes", 60)
    refused = service.cli("datasets", "import", "file:///etc", check=False)
    assert (refused.returncode, "folder_outside_roots" in refused.stderr) == (2, True)
    away = service.cli("datasets", "import", f"file://{root}/none", check=False)
    assert "source_missing" in away.stderr
    inside = service.cli("models", "pull", "http://127.0.0.1:1/x.zip", check=False)
    assert (inside.returncode, "address_refused" in inside.stderr) == (2, True)
    assert list((service.home / "imports").iterdir()) == []


def test_a_secret_is_stored_and_stands_in_no_file(service: Service) -> None:
    subprocess.run(
        [KINORA, "secrets", "set", "mirror", "--kind", "token"],
        env=service.environment,
        input=f"{CANARY}\n",
        text=True,
        check=True,
        timeout=60,
    )
    assert [row["name"] for row in json.loads(service.cli("secrets", "ls", "--json").stdout)] == ["mirror"]
    for file in [service.log, *service.home.rglob("*.log"), *(service.home / "run").rglob("*.json")]:
        assert CANARY not in file.read_text(errors="replace"), file
    service.cli("secrets", "rm", "mirror")
    assert json.loads(service.cli("secrets", "ls", "--json").stdout) == []
