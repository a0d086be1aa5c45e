"""Uploads a folder and waits for its verdict, with bars that say how far it is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from kinora.cli.output import talk
from kinora.client import Client, Json, at
from kinora.feed import follow
from kinora.upload import Kind, upload_folder
from schemas.errors import KinoraError


class Rejected(KinoraError):
    """The dataset or model was validated and refused."""

    code = "rejected"


@contextmanager
def transfer_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar of bytes; call what is yielded with (doing, done, total)."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=talk,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=None)
        yield lambda doing, done, total: progress.update(task, description=doing, completed=done, total=total)


def until_ready(client: Client, kind: Kind, item: Json) -> Json:
    """Wait until a dataset or model is validated, woken by its events.

    Raises:
        Rejected: when validation refused it; the message lists the problems.
    """
    identifier = item["id"]
    with talk.status(f"validating {item['name']} on an agent …"):
        for frame in follow(client, start="earliest", event_filter={"stream_id": identifier}, quiet=True):
            if frame["type"] == "event" and not frame["event"]["type"].endswith(
                (".validated", ".rejected", ".deleted")
            ):
                continue
            current = client.get(at(kind, identifier))
            if current["status"] == "ready":
                return current
            if current["status"] in ("rejected", "deleted"):
                raise Rejected(problems_text(current))
    raise AssertionError("the feed never ends by itself")


def add_folder(
    client: Client, kind: Kind, folder: Path, paths: Sequence[str], *, name: str, description: str, wait: bool
) -> Json:
    """Upload the files at `paths` with a bar, and wait for the verdict if asked to."""
    with transfer_bar() as report:
        item = upload_folder(
            client,
            kind,
            folder,
            paths,
            name=name or folder.resolve().name,
            description=description,
            report=report,
        )
    return until_ready(client, kind, item) if wait else item


def problems_text(item: Json) -> str:
    """Why a dataset or model was refused, one problem a line."""
    lines = [f"{item['name']} cannot be used ({item['status']}):"]
    lines += [f"  {p['where']}: {p['message']}" for p in item.get("problems") or ()]
    return "\n".join(lines)
