"""`kinora jobs`: submit, list, show, watch, logs, stop, fetch the adapter."""

import json
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.live import Live
from rich.markup import escape

from command_api.wrong_fields import wrong_fields
from kinora.artifacts import download_adapter
from kinora.cli.datasets import AsJson
from kinora.cli.moment import At, AtPosition
from kinora.cli.output import (
    EXIT_JOB_FAILED,
    age,
    connect,
    door,
    out,
    print_facts,
    print_json,
    print_lines,
    print_table,
    talk,
)
from kinora.client import Client, Json, at
from kinora.feed import follow
from kinora.job_plan import job_plan
from kinora.parameters import Parameter, parameters
from kinora.watch import JobProgress, duration, nats, percent, picture
from schemas.errors import KinoraError
from schemas.training import Hyperparameters

app = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs.")


class BadParameter(KinoraError):
    """A hyperparameter cannot be read or is out of range."""

    code = "bad_parameter"


def hyperparameters(flags: Mapping[str, str | None], pairs: Sequence[str]) -> Hyperparameters:
    """The flags that were given, and `name=value` pairs for all others; both mean the same.

    ``group.field=value`` sets a field of a group, or an entry of an object.

    Raises:
        BadParameter: naming each field, its value and what is allowed.
    """
    values: dict[str, Any] = {}
    for pair in [*(f"{name}={text}" for name, text in flags.items() if text is not None), *pairs]:
        name, equals, text = pair.partition("=")
        group, dot, inside = name.partition(".")
        if not equals or not group or bool(dot) != bool(inside):
            raise BadParameter(f"{pair[:80]!r} is not name=value; write for instance -p weight_decay=0.01")
        place, key = (values.setdefault(group, {}), inside) if dot else (values, name)
        if not isinstance(place, dict) or key in place:
            raise BadParameter(f"{name[:80]} is given twice; leave one out")
        try:
            place[key] = json.loads(text)
        except (ValueError, RecursionError):
            place[key] = text
    try:
        return Hyperparameters.model_validate(values)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise BadParameter(
            "these hyperparameters cannot be used:", errors=wrong_fields(faults, Hyperparameters)
        ) from error


Dataset = Annotated[str, typer.Option(help="Dataset id.")]
Model = Annotated[str, typer.Option(help="Base model id.")]
Name = Annotated[str, typer.Option()]
Rank = Annotated[str | None, typer.Option(help="LoRA rank.", metavar="NUMBER")]
Alpha = Annotated[str | None, typer.Option(help="LoRA alpha.", metavar="NUMBER")]
Number = Annotated[str | None, typer.Option(metavar="NUMBER")]
FramesPerClip = Annotated[str | None, typer.Option(help="Frames per clip.", metavar="NUMBER")]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        "--parameter",
        "--set",
        metavar="NAME=VALUE",
        help="Any hyperparameter; `kinora jobs parameters` lists them. May be given several times.",
    ),
]
Priority = Annotated[str, typer.Option(help="high, normal or low.")]
Pool = Annotated[str, typer.Option(help="Agents that may take it.")]


@app.command()
@door
def submit(
    dataset: Dataset,
    model: Model,
    name: Name = "",
    rank: Rank = None,
    alpha: Alpha = None,
    learning_rate: Number = None,
    batch_size: Number = None,
    epochs: Number = None,
    max_steps: Number = None,
    frames: FramesPerClip = None,
    seed: Number = None,
    parameter: Parameters = None,
    priority: Priority = "normal",
    pool: Pool = "default",
    watch: Annotated[bool, typer.Option(help="Follow it until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for a fine-tuning."""
    body = _body(
        (dataset, model, name, pool, priority),
        (rank, alpha, learning_rate, batch_size, epochs, max_steps, frames, seed),
        parameter or [],
    )
    with connect() as client:
        job = client.post("/jobs", body)
        if as_json:
            print_json(job)
        else:
            talk.print(f"[bold]{escape(job['name'])}[/] is {job['status']}", highlight=False)
            print(job["id"])
        _warn_of_empty_pool(client, pool)
        if watch:
            _leave(_watch_live(client, job))


@app.command()
@door
def plan(
    dataset: Dataset,
    model: Model,
    name: Name = "",
    rank: Rank = None,
    alpha: Alpha = None,
    learning_rate: Number = None,
    batch_size: Number = None,
    epochs: Number = None,
    max_steps: Number = None,
    frames: FramesPerClip = None,
    seed: Number = None,
    parameter: Parameters = None,
    priority: Priority = "normal",
    pool: Pool = "default",
    as_json: AsJson = False,
) -> None:
    """Say what a fine-tuning would take, and whether it fits; nothing is submitted."""
    body = _body(
        (dataset, model, name, pool, priority),
        (rank, alpha, learning_rate, batch_size, epochs, max_steps, frames, seed),
        parameter or [],
    )
    with connect() as client:
        planned = client.post("/jobs/plan", body)
    if as_json:
        print_json(planned)
    else:
        out.print(job_plan(planned), highlight=False)


_FLAGS = ("rank", "alpha", "learning_rate", "batch_size", "epochs", "max_steps", "frames", "seed")


def _body(asked: tuple[str, ...], flags: tuple[str | None, ...], pairs: Sequence[str]) -> Json:
    """What is posted, to be submitted or only planned."""
    dataset, model, name, pool, priority = asked
    settings = hyperparameters(dict(zip(_FLAGS, flags, strict=True)), pairs)
    return {
        "name": name,
        "dataset_id": dataset,
        "model_id": model,
        "hyperparameters": settings.model_dump(mode="json", exclude_unset=True),
        "pool": pool,
        "priority": priority,
    }


@app.command("parameters")
@door
def list_parameters(
    names: Annotated[
        list[str] | None, typer.Argument(help="Only those with one of these in their name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what `jobs submit -p NAME=VALUE` takes: defaults, what is allowed, what it means."""
    rows = [
        parameter._asdict()
        for parameter in parameters()
        if not names or any(part in parameter.name for part in names)
    ]
    if as_json:
        print_json(rows)
        return
    columns: dict[str, Callable[[Json], str]] = {name: itemgetter(name) for name in Parameter._fields}
    print_table(rows, columns, "No hyperparameter has that in its name. See them all: kinora jobs parameters")


@app.command()
@door
def ls(
    status: Annotated[str | None, typer.Option(help="Only these, such as queued,running.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with connect() as client:
        rows = list(client.pages("/jobs", status=status))
    if as_json:
        print_json(rows)
        return
    print_table(
        rows,
        {
            "id": lambda row: row["id"],
            "status": lambda row: row["status"],
            "step": lambda row: f"{row['step']}/{row['total_steps'] or '–'}",
            "loss": lambda row: "–" if row.get("loss_last") is None else f"{row['loss_last']:.4f}",
            "age": lambda row: age(row["created_at"]),
            "name": lambda row: row["name"],
        },
        "No jobs yet. Ask for one: kinora jobs submit --dataset ID --model ID",
    )


@app.command()
@door
def show(job_id: str, at_time: At = None, at_position: AtPosition = None, as_json: AsJson = False) -> None:
    """Show one job."""
    with connect() as client:
        job = client.get(at("jobs", job_id), at=at_time, at_position=at_position)
    if as_json:
        print_json(job)
        return
    before, after = job.get("evaluation_before") or {}, job.get("evaluation_after") or {}
    print_facts(
        {
            name: job.get(name)
            for name in ("id", "name", "status", "attempt", "agent_id", "dataset_id", "model_id")
        }
        | {
            "step": f"{job['step']}/{job['total_steps'] or '–'}"
            + (", ended early" if job.get("stopped_early") else ""),
            "epoch": _epochs(job),
            "loss": job.get("loss_last"),
            "waiting": job.get("wait_reason"),
            "ETA": duration(job.get("eta_seconds")) if job["status"] == "running" else None,
            "held-out loss": _change(before, after, "loss", nats),
            "exact match": _change(before, after, "exact_match"),
            "token accuracy": _change(before, after, "token_accuracy"),
            "output model": job.get("output_model_id"),
            "adapter": _adapter(job),
            "created": job["created_at"],
            "finished": job.get("finished_at"),
        }
        | {
            f"  {name}": json.dumps(value) if not isinstance(value, str) else value
            for name, value in job["hyperparameters"].items()
            if value is not None
        }
    )
    if job.get("error"):
        talk.print(f"{job['error']['code']}: {job['error']['message']}", style="bold red", markup=False)


def _change(
    before: Json, after: Json, figure: str, told: Callable[[float | None], str] = percent
) -> str | None:
    """A figure before and after the training; None where it was not measured."""
    if before.get(figure) is None and after.get(figure) is None:
        return None
    return f"{told(before.get(figure))} → {told(after.get(figure))}"


def _epochs(job: Json) -> str | None:
    """Passes taken, and of how many where that is known: not where steps are counted in tokens."""
    planned = job.get("epochs")
    if planned is None:
        return f"{job['epoch']:.2f}" if job["epoch"] else None
    return f"{job['epoch']:.2f}/{planned:.2f}"


def _adapter(job: Json) -> str | None:
    """Which step early stopping took it of, or why a job that was stopped has none."""
    if job.get("adapter_step") is not None:
        return f"of step {job['adapter_step']}, whose held-out loss was the lowest"
    stopped = job["status"] == "cancelled" and not job.get("output_model_id")
    return "none: it was stopped before its first step" if stopped and not job["step"] else None


def _warn_of_empty_pool(client: Client, pool: str) -> None:
    try:
        agents = [row for row in client.pages("/agents") if row["status"] != "revoked"]
    except KinoraError:
        return  # the job is accepted; that is what counts
    pools = {row["pool"] for row in agents}
    if pool not in pools:
        rest = f"there are agents in {', '.join(sorted(pools))}" if pools else "there are no agents yet"
        talk.print(
            f"no agent is enrolled in pool {pool}, so the job waits; {rest}."
            f" Admit one: kinora agents enroll NAME --pool {pool}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _watch_live(client: Client, job: Json) -> JobProgress:
    """Draw the job until it ends; a lost connection is made again by position."""
    title = f"{job['name']}  {job['id']}"
    progress = JobProgress()
    with Live(picture(progress, title), console=talk, refresh_per_second=8, transient=False) as live:
        frames = follow(client, start="earliest", event_filter={"job_id": job["id"], "telemetry": True})
        for frame in frames:
            progress = progress.after_frame(frame)
            live.update(picture(progress, title))
            if progress.finished:
                return progress
    raise AssertionError("the feed never ends by itself")


def _leave(progress: JobProgress) -> None:
    if progress.phase == "failed":
        raise typer.Exit(EXIT_JOB_FAILED)


@app.command()
@door
def watch(
    job_id: str,
    ndjson: Annotated[bool, typer.Option("--ndjson", help="Print its events as NDJSON instead.")] = False,
) -> None:
    """Follow a job until it ends; survives disconnects."""
    with connect() as client:
        if not ndjson:
            _leave(_watch_live(client, client.get(at("jobs", job_id))))
            return
        client.get(at("jobs", job_id))  # An unknown id is an error now instead of silence for ever.
        progress = JobProgress()
        for frame in follow(client, start="earliest", event_filter={"job_id": job_id}):
            if frame["type"] == "event":
                print_lines([frame["event"]])
            progress = progress.after_frame(frame)
            if progress.finished:
                _leave(progress)
                return


@app.command()
@door
def logs(job_id: str, as_json: AsJson = False) -> None:
    """Print a job's log."""
    with connect() as client:
        lines = list(client.pages(at("jobs", job_id, "logs")))
    if as_json:
        print_lines(lines)
        return
    if not lines:
        talk.print("Nothing is stored yet; segments arrive while it trains.", style="dim")
    for line in lines:
        level = line.get("level", "info")
        style = {"warning": "yellow", "error": "red"}.get(level, "")
        out.print(
            f"{str(line.get('time', ''))[:19]} {level:<7} {line.get('message', '')}",
            style=style,
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@app.command()
@door
def stop(
    job_id: str,
    mode: Annotated[
        str, typer.Option(help="graceful keeps a checkpoint and the adapter; immediate does not.")
    ] = "graceful",
    reason: Annotated[str, typer.Option()] = "",
) -> None:
    """Ask a job to end."""
    with connect() as client:
        job = client.post(at("jobs", job_id, "stop"), {"mode": mode, "reason": reason})
    talk.print(f"job {job_id} is {job['status']}")


@app.command()
@door
def adapter(
    job_id: str,
    folder: Annotated[Path, typer.Argument(help="Where to put it.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="The merged model instead, of a job with export merged.")
    ] = False,
) -> None:
    """Download a job's adapter, every file verified by its SHA-256."""
    with connect() as client:
        download_adapter(client, job_id, folder, merged=merged)
    print(folder.resolve())
