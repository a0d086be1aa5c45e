"""The operator sees what is stored, and lets go of what nobody needs, from the command line."""

import json
from pathlib import Path

from tests.service import Service


def test_usage_and_collection(service: Service, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no clip, but stored like one")
    (tmp_path / "captions.jsonl").write_text(
        json.dumps({"video": "clip.mp4", "prompt": "What?", "response": "This."}) + "\n"
    )
    dataset_id = service.cli("datasets", "add", str(tmp_path), "--no-wait").stdout.strip()

    (content,) = [line for line in service.cli("storage", "usage").stdout.splitlines() if "content" in line]
    organization_id, _, objects, *_ = content.split()
    assert organization_id.startswith("org_")
    assert int(objects) >= 3  # the clip, the captions, their listing

    service.cli("datasets", "rm", dataset_id)
    dry = json.loads(service.cli("storage", "gc", "--dry-run", "--json").stdout)
    assert (dry["state"], dry["dry_run"], dry["outcome"]["passed_over"]) == ("done", True, [])
    assert dry["seen"] >= int(objects)
    # Everything is younger than the grace period.
    assert dry["outcome"]["total"] == {"objects": 0, "bytes": 0}
    assert "objects looked at; 0 (0 B) deleted" in service.cli("storage", "gc").stderr
