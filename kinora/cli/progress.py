"""Uploads a folder and waits for its verdict, with bars that say how far it is."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from kinora.cli.output import talk
from kinora.client import ApiError, Client, Json, at
from kinora.feed import follow
from kinora.upload import Kind, declare, send_files
from schemas.api import RegisterBody
from schemas.envelope import split_type
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
        yield lambda doing, done, total: progress.update(
            task, description=doing, completed=done, total=total or None
        )


def until_ready(client: Client, kind: Kind, item: Json) -> Json:
    """Wait until a dataset or model is validated, woken by its events.

    Raises:
        Rejected: when validation refused it; the message lists the problems.
    """
    identifier = item["id"]
    with talk.status(f"validating {item['name']} on an agent …"):
        for frame in follow(client, start="earliest", event_filter={"stream_id": identifier}, quiet=True):
            position = None
            if frame["type"] == "event":
                if not ends_validation(frame["event"]["type"]):
                    continue
                position = frame["position"]
            current = _as_of(client, at(kind, identifier), position)
            if current["status"] == "ready":
                return current
            if current["status"] in ("rejected", "deleted"):
                raise Rejected(problems_text(current))
    raise AssertionError("the feed never ends by itself")


def ends_validation(event_type: str) -> bool:
    """Whether nothing more is to be waited for after an event of this type."""
    return split_type(event_type)[0].endswith((".validated", ".rejected", ".deleted"))


def _as_of(client: Client, path: str, position: int | None) -> Json:
    """What is at `path`, once what is shown has come as far as `position`; as it is shown now without one."""
    if position is None:
        return client.get(path)
    while True:
        try:
            return client.get(path, min_position=position)
        except ApiError as error:  # the service has waited 2 s by then
            if error.code != "projection_behind":
                raise


class ImportFailed(KinoraError):
    """The service could not have the files."""

    code = "import_failed"


def until_imported(client: Client, kind: Kind, item: Json) -> Json:
    """Follow a running import with a bar.

    Raises:
        ImportFailed: why it failed, and how to try again.
    """
    path = at(kind, item["id"])
    with transfer_bar() as report:
        while (current := client.get(path))["status"] == "importing":
            try:
                progress = client.get(f"{path}/import")
            except ApiError as error:
                if error.code != "no_import":
                    raise
                continue  # it ended in between
            report(progress["stage"], progress["bytes_done"], progress["bytes_total"] or 0)
            time.sleep(0.5)
    problem = current.get("import_problem")
    if current["status"] == "import_failed" and problem:
        again = f"; try again: kinora {kind} retry {item['id']}" if problem["retryable"] else ""
        raise ImportFailed(f"{item['name']}: {problem['message']}{again}", code=problem["code"])
    return current


def import_from(
    client: Client, kind: Kind, uri: str, *, name: str, description: str, secret: str, wait: bool
) -> Json:
    """Have the service fetch files from elsewhere, and wait for the verdict if asked to."""
    source = {"uri": uri} | ({"secret": secret} if secret else {})
    item = client.post(f"/{kind}/import", {"name": name, "description": description, "source": source})
    return until_ready(client, kind, until_imported(client, kind, item)) if wait else item


def retry_import(client: Client, kind: Kind, identifier: str, *, wait: bool) -> Json:
    """Try a failed import again."""
    item = client.post(at(kind, identifier, "import", "retry"))
    return until_ready(client, kind, until_imported(client, kind, item)) if wait else item


def add_folder(
    client: Client,
    kind: Kind,
    folder: Path,
    paths: Sequence[str],
    *,
    name: str,
    description: str,
    wait: bool,
    resume: str = "",
) -> Json:
    """Upload the files at `paths` with a bar, and wait for the verdict if asked to.

    `resume` is the id of a dataset or model whose upload broke off.
    """
    with transfer_bar() as report:
        files = declare(folder, paths, report)
        item_id = resume
        if not resume:
            body = RegisterBody(name=name or folder.resolve().name, description=description, files=files)
            item_id = client.post(f"/{kind}", body)["id"]
        try:
            item = send_files(client, kind, item_id, folder, files, report)
        except (KinoraError, KeyboardInterrupt):
            talk.print(
                f"to go on where it stopped: kinora {kind} add {folder} --resume {item_id}", markup=False
            )
            raise
    return until_ready(client, kind, item) if wait else item


def problems_text(item: Json) -> str:
    """Why a dataset or model was refused, one problem a line."""
    lines = [f"{item['name']} cannot be used ({item['status']}):"]
    lines += [f"  {p['where']}: {p['message']}" for p in item.get("problems") or ()]
    return "\n".join(lines)
