"""Bad clips, captions and models through the whole chain: an agent judges them, API and CLI tell."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from kinora.client import Client, Json
from kinora.upload import Kind, send_files
from schemas.api import RegisterBody
from schemas.objects import FileEntry
from tests.engine.videos import write_broken, write_sound, write_video
from tests.service import Service, wait_until
from tests.system_fixtures import Registered, Samples

pytestmark = pytest.mark.timeout(240)

ROWS = {
    '{"video": ': "does not parse",
    '{"video": "../good.mp4", "prompt": "?", "response": "!"}': "inside the dataset folder",
    '{"video": "gone.mp4", "prompt": "?", "response": "!"}': "'gone.mp4' is not among the files",
    '{"video": "good.mp4", "prompt": "?"}': "response is missing; add it",
}
CLIPS = {
    "empty.mp4": "the file is empty; record or convert it again",
    "text.mp4": "cannot be decoded",
    "truncated_mp4.mp4": "cannot be decoded",
    "overwritten.mp4": "cannot be decoded",
    "sound.m4a": "holds no video stream (sound only?); leave it out",
}


def row(video: str) -> str:
    return json.dumps({"video": video, "prompt": "What happens?", "response": "bars grow"})


def entry(file: Path) -> FileEntry:
    content = file.read_bytes()
    return FileEntry(path=file.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def judged(client: Client, kind: Kind, folder: Path) -> Json:
    """Send a folder as it is, as a client does that does not look at it first, and wait for the verdict."""
    files = tuple(entry(file) for file in sorted(folder.iterdir()))
    item = client.post(f"/{kind}", RegisterBody(name="bad", files=files))
    send_files(client, kind, item["id"], folder, files, lambda *_: None)

    def verdict() -> Json | None:
        shown = client.get(f"/{kind}/{item['id']}")
        return shown if shown["status"] in ("ready", "rejected") else None

    return wait_until(verdict, seconds=60, what="the verdict")


def test_every_bad_clip_and_row_reaches_its_owner(
    service: Service, registered: Registered, tmp_path: Path
) -> None:
    write_video(tmp_path / "good.mp4")
    for name in CLIPS:
        write_sound(tmp_path / name) if name == "sound.m4a" else write_broken(Path(name).stem, tmp_path)
    (tmp_path / "captions.jsonl").write_text("\n".join([*ROWS, row("good.mp4"), *map(row, CLIPS)]))
    with service.client() as client:
        dataset = judged(client, "datasets", tmp_path)
        others = client.get(f"/datasets/{registered.dataset_id}")
        story = [event["type"] for event in client.pages("/events", stream_id=dataset["id"])]

    expected = {f"captions.jsonl:{number}": says for number, says in enumerate(ROWS.values(), 1)} | CLIPS
    found = {problem["where"]: problem["message"] for problem in dataset["problems"]}
    assert dataset["status"] == "rejected"
    assert found.keys() == expected.keys()
    assert [where for where, says in expected.items() if says not in found[where]] == []
    assert story.count("kinora.dataset.rejected.v1") == 1
    assert others["status"] == "ready"

    shown = service.cli("datasets", "show", dataset["id"])
    assert [where for where in expected if f"{where}: {found[where]}" not in shown.stderr] == []
    ids = ("--dataset", dataset["id"], "--model", registered.model_id)
    refused = service.cli("jobs", "submit", *ids, check=False)
    assert (refused.returncode, "dataset_rejected" in refused.stderr) == (5, True)


def test_a_clip_of_one_frame_is_named_when_it_is_too_short(
    service: Service, registered: Registered, tmp_path: Path
) -> None:
    write_video(tmp_path / "good.mp4")
    write_video(tmp_path / "still.mp4", frames=1)
    (tmp_path / "captions.jsonl").write_text("\n".join(map(row, ("good.mp4", "still.mp4", "good.mp4"))))
    added = service.cli("datasets", "add", str(tmp_path))
    dataset_id = added.stdout.strip()

    shown = service.cli("datasets", "show", dataset_id).stderr
    assert "still.mp4: the clip has 1 frame" in shown
    assert "captions.jsonl:3: row 3 has the same video, prompt and response as row 1" in shown
    refused = service.cli(
        "jobs", "submit", "--dataset", dataset_id, "--model", registered.model_id, check=False
    )
    assert refused.returncode == 2
    assert "frames is 4, but the shortest clip" in refused.stderr
    assert "(still.mp4) has 1; ask for 1 or fewer" in refused.stderr


def test_a_bad_checkpoint_reaches_its_owner(service: Service, samples: Samples, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(samples.model, tmp_path / "model"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])

    refused = service.cli("models", "add", str(folder), check=False)

    assert refused.returncode == 2
    assert f"model.safetensors ({len(weights) - 100} bytes) is cut off or damaged" in refused.stderr
    assert "upload it again" in refused.stderr
    assert "Traceback" not in refused.stderr
