"""The main job over the real CLI and processes: clips in, a fine-tuned adapter out, every step an event."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import Service, job_events, types, wait_until
from tests.system_fixtures import Registered, Samples

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def finished_job(service: Service, registered: Registered) -> str:
    done = service.cli(
        *("jobs", "submit", "--dataset", registered.dataset_id, "--model", registered.model_id),
        *("--name", "acceptance", "--max-steps", "24", "--batch-size", "16", "--learning-rate", "5e-3"),
        *("-p", "checkpoint_every_steps=8", "-p", "held_out_fraction=0.25", "-p", "export=merged", "--watch"),
        timeout=180,
    )
    return done.stdout.strip().splitlines()[0]


def test_the_job_succeeds_and_its_story_is_complete(service: Service, finished_job: str) -> None:
    with service.client() as client:
        job = client.get(f"/jobs/{finished_job}")
        story = types(job_events(client, finished_job))

    assert job["status"] == "succeeded"
    assert job["step"] == job["total_steps"] == 24
    assert story[:5] == ["requested", "validation_started", "planned", "queued", "assigned"]
    assert story[-2:] == ["adapter_stored", "succeeded"]
    assert story.count("checkpoint_saved") >= 2
    assert {"agent_accepted", "training_started", "progressed", "evaluated", "training_finished"} <= set(
        story
    )


def test_the_loss_fell_and_the_curve_is_whole(service: Service, finished_job: str) -> None:
    with service.client() as client:
        points = client.get(f"/jobs/{finished_job}/metrics")["points"]

    assert [point["step"] for point in points] == list(range(1, 25))
    assert points[-1]["loss"] < points[0]["loss"]


def test_the_adapter_is_stock_peft_and_verified(service: Service, finished_job: str, tmp_path: Path) -> None:
    service.cli("jobs", "adapter", finished_job, str(tmp_path / "adapter"))
    with service.client() as client:
        entries = client.get(f"/jobs/{finished_job}/adapter")["files"]

    assert {"adapter_config.json", "adapter_model.safetensors"} <= {entry["path"] for entry in entries}
    for entry in entries:
        content = (tmp_path / "adapter" / entry["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"


def test_the_merged_model_says_what_base_and_adapter_say(
    service: Service, samples: Samples, finished_job: str, tmp_path: Path
) -> None:
    """The job's own, and one merged by hand, loaded by transformers alone."""
    service.cli("jobs", "adapter", finished_job, str(tmp_path / "merged"), "--merged")
    service.cli("jobs", "adapter", finished_job, str(tmp_path / "adapter"))
    by_hand = (str(samples.model), str(tmp_path / "adapter"), str(tmp_path / "by-hand"))
    assert "writing" in service.cli("models", "merge", *by_hand, timeout=120).stderr

    script = Path(__file__).with_name("stock_logits.py")
    folders = (str(samples.model), *(str(tmp_path / name) for name in ("adapter", "merged", "by-hand")))
    ran = subprocess.run(
        [sys.executable, str(script), *folders], capture_output=True, check=True, text=True, cwd=tmp_path
    )
    differences = json.loads(ran.stdout.splitlines()[-1])
    assert differences["base"] > 0.1
    assert max(differences["merged"], differences["by-hand"]) <= 1e-4


def test_the_adapter_is_a_model_of_its_own(
    service: Service, finished_job: str, registered: Registered
) -> None:
    with service.client() as client:
        model = client.get(f"/models/{client.get(f'/jobs/{finished_job}')['output_model_id']}")

    assert (model["kind"], model["status"]) == ("adapter", "ready")
    assert (model["job_id"], model["base_model_id"]) == (finished_job, registered.model_id)


def test_lists_and_pages_show_it(service: Service, finished_job: str, registered: Registered) -> None:
    jobs = json.loads(service.cli("jobs", "ls", "--json").stdout)
    datasets = json.loads(service.cli("datasets", "ls", "--json").stdout)
    models = json.loads(service.cli("models", "ls", "--json").stdout)

    assert finished_job in [row["id"] for row in jobs]
    assert registered.dataset_id in [row["id"] for row in datasets]
    assert registered.model_id in [row["id"] for row in models]
    assert "succeeded" in service.cli("jobs", "ls").stdout
    assert "succeeded" in service.cli("jobs", "show", finished_job).stdout
    assert "60" in service.cli("datasets", "show", registered.dataset_id).stdout
    assert "smolvlm" in service.cli("models", "show", registered.model_id).stdout.lower()


def test_a_plan_says_what_a_job_would_take_and_requests_nothing(
    service: Service, registered: Registered
) -> None:
    asked = ("--dataset", registered.dataset_id, "--model", registered.model_id, "--max-steps", "24")
    with service.client() as client:
        before = client.get("/jobs")["data"]
    plan = json.loads(service.cli("jobs", "plan", *asked, "--json").stdout)
    shown = service.cli("jobs", "plan", *asked).stdout

    (agent,) = (each for each in plan["agents"] if each["online"])
    assert (plan["total_steps"], plan["refusal"], agent["verdict"]) == (24, None, "fits")
    assert 0 < agent["seconds"]["least"] < agent["seconds"]["likely"] < agent["seconds"]["most"]
    parts = agent["preflight"]["parts"]
    assert sum(part["size_bytes"] for part in parts) == agent["preflight"]["peak_bytes"]
    assert all(part["name"] in shown for part in parts)
    assert agent["name"] in shown
    with service.client() as client:
        assert client.get("/jobs")["data"] == before


def test_logs_are_kept_as_objects(service: Service, finished_job: str) -> None:
    assert service.cli("jobs", "logs", finished_job).stdout.strip()


def test_the_whole_log_can_be_read_from_its_beginning(service: Service, finished_job: str) -> None:
    lines = service.cli("events", "tail", "--after", "0", "--until-head", "--ndjson").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    positions = [event["position"] for event in events]

    assert positions == sorted(set(positions))
    of_job = [event for event in events if event["subject"] == finished_job]
    assert [event["streamversion"] for event in of_job] == list(range(1, len(of_job) + 1))


@pytest.mark.parametrize("command", [("jobs", "ls"), ("events", "tail", "--after", "0", "--until-head")])
def test_a_kept_token_that_is_void_is_replaced(service: Service, command: tuple[str, ...]) -> None:
    service.cli("jobs", "ls")
    session_file = service.home / "run" / "cli-session.json"
    session = json.loads(session_file.read_text())
    session_file.write_text(json.dumps(session | {"access_token": session["access_token"][:-8] + "AAAAAAAA"}))

    service.cli(*command)

    assert json.loads(session_file.read_text())["access_token"] != session["access_token"]


def test_a_rebuilt_projection_says_the_same(service: Service, finished_job: str) -> None:
    with service.client() as client:
        before = client.get(f"/jobs/{finished_job}")
        service.cli("projections", "rebuild", "jobs")
        after = client.get(f"/jobs/{finished_job}")

    assert after == before


def test_doctor_finds_nothing_wrong(service: Service, registered: Registered) -> None:
    findings = json.loads(service.cli("doctor", "--json").stdout)

    assert [finding for finding in findings if finding["verdict"] == "failed"] == []
    assert {"engine", "service", "agents"} <= {finding["name"] for finding in findings}


def test_a_training_that_is_stopped_gracefully_keeps_its_adapter(
    service: Service, registered: Registered
) -> None:
    with service.client() as client:
        job = client.post(
            "/jobs",
            {
                "dataset_id": registered.dataset_id,
                "model_id": registered.model_id,
                "hyperparameters": {"max_steps": 5000, "batch_size": 8, "learning_rate": 1e-3},
            },
        )
        wait_until(lambda: client.get(f"/jobs/{job['id']}")["step"] > 3, seconds=90, what="some steps")
        service.cli("jobs", "stop", job["id"], "--reason", "seen enough")
        watched = service.cli("jobs", "watch", job["id"], "--ndjson")
        story = types([json.loads(line) for line in watched.stdout.splitlines()])
        view = client.get(f"/jobs/{job['id']}")

    assert view["status"] == "cancelled"
    assert story[-1] == "stopped"
    assert "adapter_stored" in story
    assert sum(name in ("stopped", "failed", "succeeded") for name in story) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["jobs", "show", "job_" + "0" * 32], 4, "job_"),
        (["jobs", "submit", "--dataset", "ds_x", "--model", "mdl_x"], 2, "dataset_id"),
        (["jobs", "submit", "--dataset", "ds_x", "--model", "mdl_x", "--rank", "0"], 2, "rank"),
        (["jobs", "submit", "--dataset", "ds_x", "--model", "mdl_x", "-p", "rank"], 2, "name=value"),
        (["jobs", "plan", "--dataset", "ds_" + "0" * 32, "--model", "mdl_" + "0" * 32], 4, "ds_"),
        (["jobs", "plan", "--dataset", "ds_x", "--model", "mdl_x", "-p", "colour=red"], 2, "colour"),
        (["datasets", "add", "nowhere"], 2, "nowhere"),
        (["models", "add", "nowhere"], 2, "config.json"),
    ],
)
def test_bad_input_is_refused_clearly(service: Service, arguments: list[str], code: int, says: str) -> None:
    done = service.cli(*arguments, check=False)

    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_with_a_missing_clip_names_the_row(
    service: Service, samples: Samples, tmp_path: Path
) -> None:
    (tmp_path / "captions.jsonl").write_text(
        '{"video": "gone.mp4", "prompt": "What?", "response": "nothing"}\n'
    )

    done = service.cli("datasets", "add", str(tmp_path), check=False)

    assert done.returncode == 2
    assert "captions.jsonl:1" in done.stderr
    assert "gone.mp4" in done.stderr
