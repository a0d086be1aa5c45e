"""The demo, read top to bottom: start, sign up, make samples, upload, train, look at the result."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from kinora.artifacts import download_adapter
from kinora.cli.progress import add_folder
from kinora.client import Client, Json
from kinora.demo.audit import audit_table
from kinora.demo.plots import save_loss_curve
from kinora.demo.service import running_service
from kinora.feed import follow
from kinora.sources import dataset_paths, model_paths
from kinora.upload import Kind
from kinora.watch import TERMINAL, JobProgress, percent, picture
from schemas.errors import KinoraError

SAMPLE_CLIPS = 240
STEPS = 160
HYPERPARAMETERS: Json = {
    "rank": 8,
    "alpha": 16,
    "learning_rate": 5e-3,
    "schedule": "cosine",
    "warmup_ratio": 0.05,
    "max_steps": STEPS,
    "frames": 4,
    "held_out_fraction": 0.2,
    "checkpoint_every_steps": 40,
}


class DemoFailed(KinoraError):
    """The demo cannot go on."""

    code = "demo_failed"


@dataclass(frozen=True)
class Result:
    """What the demo found out; `report.json` is exactly this."""

    job_id: str
    status: str
    steps: int
    loss_first: float | None
    loss_last: float | None
    accuracy_before: float | None
    accuracy_after: float | None
    seconds: float
    adapter_dir: str | None
    events: int


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
        _make_base_model(model_folder, steps)
        dataset = _send(client, "datasets", clips, dataset_paths(clips), steps)
        model = _send(client, "models", model_folder, model_paths(model_folder), steps)
        job = client.post("/jobs", _job_body(dataset, model, own_data=videos is not None))
        console.print(f"[green]✓[/] job requested: [bold]{job['id']}[/]", highlight=False)
        progress = _watch(client, job, console)
        result = _collect(client, job["id"], progress, output, began)
        _show(client, result, output, console)
    console.print("[green]✓[/] everything that was started is stopped", highlight=False)
    (output / "report.json").write_text(json.dumps(result.__dict__, indent=2) + "\n")
    _next_commands(result, output, console)
    return result


def _forget_results(output: Path) -> None:
    """What an earlier run found must not be taken for this one's, should this one end early."""
    for name in ("report.json", "loss.png"):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "adapter", ignore_errors=True)


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
        "making sample clips of moving shapes …", f"{SAMPLE_CLIPS} sample clips (H.264) in {folder}"
    ):
        _engine_tool("qlora_engine.data.shapes", str(folder), "--clips", str(SAMPLE_CLIPS))
    return folder


def _make_base_model(folder: Path, steps: Steps) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with steps.step(
        "pre-training a tiny base model on captioned stills …",
        f"tiny SmolVLM, pre-trained on stills only, in {folder}",
    ):
        _engine_tool("qlora_engine.models.tiny", str(folder))


def _send(client: Client, kind: Kind, folder: Path, paths: list[str], steps: Steps) -> Json:
    began = time.monotonic()
    item = add_folder(client, kind, folder, paths, name="", description="", wait=True)
    steps.finished(f"{kind.removesuffix('s')} [bold]{item['name']}[/] uploaded and validated", began)
    return item


def _job_body(dataset: Json, model: Json, *, own_data: bool) -> Json:
    facts = dataset["facts"]
    settings = HYPERPARAMETERS | {
        "batch_size": max(1, min(32, facts["examples"])),
        "frames": min(HYPERPARAMETERS["frames"], facts["smallest_clip_frames"] or HYPERPARAMETERS["frames"]),
    }
    return {
        "name": f"demo on {dataset['name']}",
        "dataset_id": dataset["id"],
        "model_id": model["id"],
        "hyperparameters": settings,
        "labels": {"demo": "own-videos" if own_data else "sample"},
    }


def _watch(client: Client, job: Json, console: Console) -> JobProgress:
    progress = JobProgress()
    with Live(picture(progress, job["name"]), console=console, refresh_per_second=8) as live:
        for frame in follow(client, start="earliest", event_filter={"job_id": job["id"], "telemetry": True}):
            progress = progress.after_frame(frame)
            live.update(picture(progress, job["name"]))
            if progress.finished:
                break
    return progress


def _collect(client: Client, job_id: str, progress: JobProgress, output: Path, began: float) -> Result:
    view = client.get(f"/jobs/{job_id}", min_position=progress.position)
    adapter = output / "adapter"
    if view["status"] == "succeeded":
        download_adapter(client, job_id, adapter)
        metrics = client.get(f"/jobs/{job_id}/metrics", min_position=progress.position)
        change = f"{percent(_match(progress.before))} → {percent(_match(progress.after))}"
        measured = _match(progress.after) is not None
        title = view["name"] + (f", held-out exact match {change}" if measured else "")
        save_loss_curve(metrics, title, output / "loss.png")
    return Result(
        job_id=job_id,
        status=view["status"],
        steps=view["step"],
        loss_first=progress.loss_first,
        loss_last=progress.loss,
        accuracy_before=_match(progress.before),
        accuracy_after=_match(progress.after),
        seconds=round(time.monotonic() - began, 2),
        adapter_dir=str(adapter) if adapter.is_dir() else None,
        events=sum(1 for _ in client.pages(f"/jobs/{job_id}/events")),
    )


def _match(evaluation: object) -> float | None:
    return getattr(evaluation, "exact_match", None)


def _show(client: Client, result: Result, output: Path, console: Console) -> None:
    console.print()
    console.print(audit_table(list(client.pages(f"/jobs/{result.job_id}/events"))))
    console.print()
    style = "bold green" if result.status == "succeeded" else "bold red"
    console.print(
        f"[{style}]{result.status}[/] after {result.steps} steps and {result.events} events", highlight=False
    )
    if result.loss_first is not None and result.loss_last is not None:
        console.print(f"loss         {result.loss_first:.4f} → {result.loss_last:.4f}", highlight=False)
    change = f"{percent(result.accuracy_before)} → {percent(result.accuracy_after)} on held-out clips"
    if result.accuracy_after is None:
        change = "not measured: fewer than 8 clips are held out"
    console.print(f"exact match  {change}", highlight=False)
    if result.adapter_dir:
        _show_answers(Path(result.adapter_dir) / "held_out_answers.jsonl", console)
        console.print(f"adapter      {result.adapter_dir}", soft_wrap=True, highlight=False)
        console.print(f"loss curve   {output / 'loss.png'}", soft_wrap=True, highlight=False)
    console.print(f"report       {output / 'report.json'}", soft_wrap=True, highlight=False)


def _show_answers(file: Path, console: Console) -> None:
    answers = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for answer in answers[:4]:
        mark = "[green]✓[/]" if answer["right"] else "[red]✗[/]"
        console.print(
            f"  {mark} {escape(answer['video'])}: [italic]{escape(answer['answer'])}[/]"
            + ("" if answer["right"] else f" [dim](expected: {escape(answer['response'])})[/]"),
            highlight=False,
        )


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
