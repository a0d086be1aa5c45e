"""The demo, read top to bottom: start, sign up, make samples, upload, train, look at the result."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.live import Live

from kinora.artifacts import download_adapter
from kinora.cli.progress import add_folder
from kinora.client import Client, Json
from kinora.demo.audit import audit_table
from kinora.demo.findings import Result, Training, found_out, show_findings
from kinora.demo.plots import save_loss_curves
from kinora.demo.service import running_service
from kinora.feed import follow
from kinora.sources import dataset_paths, model_paths
from kinora.upload import Kind
from kinora.watch import TERMINAL, JobProgress, percent, picture
from schemas.errors import KinoraError

SAMPLE_CLIPS = 240
HYPERPARAMETERS: Json = {
    "rank": 8,
    "alpha": 16,
    "learning_rate": 5e-3,
    "schedule": "cosine",
    "warmup_ratio": 0.05,
    "max_steps": 80,
    "frames": 4,
    "held_out_fraction": 0.2,
    "checkpoint_every_steps": 40,
}
STEPS_ON_OWN_VIDEOS = 160
ADAPTER, ORDINARY = "adapter", "adapter-ordinary"
"""Folders below the output."""


class DemoFailed(KinoraError):
    """The demo cannot go on."""

    code = "demo_failed"


class Steps:
    """Says what happens and how long it took, one line a step."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[None]:
        """A spinner while it happens, a line when it is done."""
        began = time.monotonic()
        with self.console.status(doing):
            yield
        self.finished(done, began)

    def finished(self, done: str, began: float) -> None:
        self.console.print(f"[green]✓[/] {done} [dim]({time.monotonic() - began:.1f} s)[/]", highlight=False)


def run_demo(output: Path, videos: Path | None, console: Console) -> Result:
    """Run the main job on one machine and leave the results in `output`.

    The sample clips are trained on twice, with ordinary and with temporal-aware LoRA, on a base that cannot
    know the order of frames; a person's own clips once, with temporal-aware LoRA.

    Raises:
        KinoraError: with the remedy, when a part cannot be done; everything started is stopped all the same.
    """
    began = time.monotonic()
    steps = Steps(console)
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    _forget_results(output)
    if videos is not None:
        dataset_paths(videos)  # Bad captions are an error now, before anything is started.
    model_folder = output / "base-model"
    with (
        running_service(output / "data", owner="demo", console=console) as credentials,
        Client(credentials, patience_seconds=30) as client,
    ):
        me = client.get("/users/me")
        console.print(
            f"[green]✓[/] signed in as [bold]{me['username']}[/] at {credentials.url}", highlight=False
        )
        _stop_leftovers(client, console)
        clips = videos or _make_samples(output / "sample-clips", steps)
        _make_base_model(model_folder, steps, order_blind=videos is None)
        dataset = _send(client, "datasets", clips, dataset_paths(clips), steps)
        model = _send(client, "models", model_folder, model_paths(model_folder), steps)
        bodies = [
            _job_body(dataset, model, temporal=temporal, own=videos is not None)
            for temporal in ((True,) if videos else (False, True))
        ]
        jobs = [client.post("/jobs", body) for body in bodies]
        for job in jobs:
            console.print(f"[green]✓[/] job requested: [bold]{job['id']}[/]", highlight=False)
        folders = (output / ORDINARY, output / ADAPTER)[-len(jobs) :]
        trainings = [_train(client, job, folder, console) for job, folder in zip(jobs, folders, strict=True)]
        result = Result(
            **asdict(trainings[-1]),
            temporal=bodies[-1]["hyperparameters"]["temporal"],
            ordinary=trainings[0] if len(trainings) > 1 else None,
            seconds=round(time.monotonic() - began, 2),
        )
        if result.adapter_dir is not None:
            _save_curves(client, result, output / "loss.png")
        console.print()
        console.print(audit_table(list(client.pages(f"/jobs/{result.job_id}/events"))))
    console.print()
    show_findings(result, output, console)
    console.print("[green]✓[/] everything that was started is stopped", highlight=False)
    (output / "report.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    _next_commands(result, output, console)
    return result


def _forget_results(output: Path) -> None:
    """What an earlier run found must not be taken for this one's, should this one end early."""
    for name in ("report.json", "loss.png"):
        (output / name).unlink(missing_ok=True)
    for name in (ADAPTER, ORDINARY):
        shutil.rmtree(output / name, ignore_errors=True)


def _stop_leftovers(client: Client, console: Console) -> None:
    """A demo that was interrupted left its job behind; it would be trained first otherwise."""
    for job in client.pages("/jobs"):
        if job["status"] not in TERMINAL:
            client.post(f"/jobs/{job['id']}/stop", {"mode": "immediate", "reason": "a new demo began"})
            console.print(f"[yellow]![/] stopped {job['id']}, left by an earlier demo", highlight=False)


def _engine_tool(module: str, *arguments: str) -> None:
    # In a process of its own: the CLI stays free of torch and av, and Ctrl-C ends it.
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoFailed(f"python -m {module} failed:\n{done.stderr.strip()[-2000:]}")


def _make_samples(folder: Path, steps: Steps) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    with steps.step(
        "making sample clips of moving shapes …",
        f"{SAMPLE_CLIPS} sample clips (H.264), each and its reverse, in {folder}",
    ):
        _engine_tool("qlora_engine.data.shapes", str(folder), "--clips", str(SAMPLE_CLIPS), "--mirrored")
    return folder


def _make_base_model(folder: Path, steps: Steps, *, order_blind: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    blind = ", which cannot know the order of frames," if order_blind else ","
    with steps.step(
        "pre-training a tiny base model on captioned stills …",
        f"tiny SmolVLM, pre-trained on stills only{blind} in {folder}",
    ):
        _engine_tool("qlora_engine.models.tiny", str(folder), *(["--order-blind"] if order_blind else []))


def _send(client: Client, kind: Kind, folder: Path, paths: list[str], steps: Steps) -> Json:
    began = time.monotonic()
    item = add_folder(client, kind, folder, paths, name="", description="", wait=True)
    steps.finished(f"{kind.removesuffix('s')} [bold]{item['name']}[/] uploaded and validated", began)
    return item


def _job_body(dataset: Json, model: Json, *, temporal: bool, own: bool) -> Json:
    facts = dataset["facts"]
    shortest = facts["smallest_clip_frames"] or 0
    temporal = temporal and shortest > 1  # One frame has none before or after it.
    settings = HYPERPARAMETERS | {
        "batch_size": max(1, min(32, facts["examples"])),
        "frames": min(HYPERPARAMETERS["frames"], shortest or HYPERPARAMETERS["frames"]),
        "temporal": temporal,
    }
    if own:
        settings["max_steps"] = STEPS_ON_OWN_VIDEOS
    return {
        "name": f"demo: {'temporal-aware' if temporal else 'ordinary'} LoRA on {dataset['name']}",
        "dataset_id": dataset["id"],
        "model_id": model["id"],
        "hyperparameters": settings,
        "labels": {"demo": "own-videos" if own else "sample"},
    }


def _train(client: Client, job: Json, folder: Path, console: Console) -> Training:
    """Follow the job to its end and fetch its adapter into `folder`."""
    progress = _watch(client, job, console)
    view = client.get(f"/jobs/{job['id']}", min_position=progress.position)
    if view["status"] == "succeeded":
        download_adapter(client, job["id"], folder)
    return found_out(
        view,
        progress,
        adapter=folder if folder.is_dir() else None,
        events=sum(1 for _ in client.pages(f"/jobs/{job['id']}/events")),
        in_pairs=job["labels"]["demo"] == "sample",
    )


def _watch(client: Client, job: Json, console: Console) -> JobProgress:
    progress = JobProgress()
    with Live(picture(progress, job["name"]), console=console, refresh_per_second=8) as live:
        for frame in follow(client, start="earliest", event_filter={"job_id": job["id"], "telemetry": True}):
            progress = progress.after_frame(frame)
            live.update(picture(progress, job["name"]))
            if progress.finished:
                break
    console.print()  # Without a terminal the picture does not end its line.
    return progress


def _save_curves(client: Client, result: Result, file: Path) -> None:
    name = "temporal-aware LoRA" if result.temporal else "LoRA"
    trainings = {name: client.get(f"/jobs/{result.job_id}/metrics")}
    title = name
    if result.accuracy_after is not None:
        title += (
            f", held-out exact match {percent(result.accuracy_before)} → {percent(result.accuracy_after)}"
        )
    if result.ordinary is not None:
        trainings = {"ordinary LoRA": client.get(f"/jobs/{result.ordinary.job_id}/metrics"), **trainings}
        title = (
            f"direction of held-out clips: ordinary LoRA {percent(result.ordinary.direction_after)},"
            f" temporal-aware LoRA {percent(result.direction_after)}"
        )
    save_loss_curves(trainings, title, file)


def _next_commands(result: Result, output: Path, console: Console) -> None:
    program = Path(sys.executable).with_name("kinora")
    console.print("\n[bold]Next, with everything still there:[/]")
    console.print(f"  export KINORA_HOME={output / 'data'}", soft_wrap=True, highlight=False)
    console.print(
        f"  {program} up                 # in one terminal; Ctrl-C stops it", soft_wrap=True, highlight=False
    )
    console.print(f"  {program} jobs show {result.job_id}", soft_wrap=True, highlight=False)
    console.print(f"  {program} jobs logs {result.job_id}", soft_wrap=True, highlight=False)
    console.print(f"  {program} events tail --after 0", soft_wrap=True, highlight=False)
    console.print("  make demo VIDEOS=folder      # with your own clips and captions.jsonl", highlight=False)
