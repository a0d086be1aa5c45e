"""Where an agent keeps things on its node, and that only one agent does.

<work_folder>/
    lock                       held by the running agent
    nats.jwt                   the newest right to speak on NATS (`credentials`)
    cache/                     staged inputs by content, kept between attempts (`cache`)
    frames/                    decoded frames by content, kept by engines for one another
    spool/<item>.<attempt>     reports not yet known to be stored (`spool`)
    attempts/<item>.<attempt>/ everything else of one attempt; removed with it
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.work import HeldItem
from trainer_agent.errors import AgentError, WorkFolderInUse


class AttemptFolder:
    """The files of one attempt."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.dataset = path / "dataset"
        self.manifest = path / "manifest.json"
        self.resume = path / "resume"
        self.output = path / "output"
        self.log_file = path / "engine.log"
        self.segments = path / "segments"

    def made_by_engine(self, path: str) -> Path:
        """The file or folder that the engine says it wrote.

        Raises:
            AgentError: when it is outside of the output folder: the engine reads what strangers made, and
                must not be able to name this node's own files as its results.
        """
        real = Path(path).resolve()
        if not real.is_relative_to(self.output.resolve()):
            raise AgentError(
                f"the engine named {path} as its output", code="engine_misbehaved", retryable=False
            )
        return real

    def create(self) -> None:
        """Begin empty: what an earlier try of the same attempt left is of no use."""
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in (self.model, self.dataset, self.output, self.segments):
            folder.mkdir(parents=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class WorkFolder:
    """The agent's own folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = path / "cache"
        self.spools = path / "spool"
        self.nats_jwt = path / "nats.jwt"
        self._attempts = path / "attempts"

    def attempt(self, held: HeldItem) -> AttemptFolder:
        return AttemptFolder(self._attempts / f"{held.item_id}.{held.attempt}")

    def spool(self, held: HeldItem) -> Path:
        return self.spools / f"{held.item_id}.{held.attempt}"

    def clean_leftovers(self) -> None:
        """Remove the attempts of an earlier run: their engines died with it."""
        for leftover in (self._attempts, *self.path.glob("probe-*")):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[WorkFolder]:
    """The folder at `path`, for this process alone.

    Raises:
        WorkFolderInUse: when another agent holds it.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (path / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkFolderInUse(
                f"work_folder {path} is in use by another agent; give each agent a folder of its own"
            ) from None
        folder = WorkFolder(path)
        folder.spools.mkdir(exist_ok=True)
        yield folder
