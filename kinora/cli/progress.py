"""Progress bars for uploads and for waiting until something is validated."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from kinora.cli.output import talk
from kinora.client import Client, Json
from kinora.feed import follow
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


def until_ready(client: Client, kind: str, item: Json) -> Json:
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
            current = client.get(f"/{kind}/{identifier}")
            if current["status"] == "ready":
                return current
            if current["status"] in ("rejected", "deleted"):
                raise Rejected(problems_text(current))
    raise AssertionError("the feed never ends by itself")


def problems_text(item: Json) -> str:
    """Why a dataset or model was refused, one problem a line."""
    lines = [f"{item['name']} cannot be used ({item['status']}):"]
    lines += [f"  {p['where']}: {p['message']}" for p in item.get("problems") or ()]
    return "\n".join(lines)
