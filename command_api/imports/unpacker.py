"""Unpacks one archive in a process of its own: without keys, with little memory, last in line for the CPU.

What an archive claims may cost any amount of memory to look at, and what takes it apart may fall over: then
this process does, and not the orchestrator. ``python -m command_api.imports.unpacker`` reads a `Request`, a
line of JSON, on stdin, and ends with that pipe. It answers lines of JSON; the last one says how it ended.
"""

import asyncio
import logging
import os
import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import TypeAdapter

from command_api.imports import archives
from command_api.imports.errors import SourceFailed, disk_failure
from command_api.imports.work import Fetched, Work
from command_api.settings import ImportSettings
from schemas.base import Message

logger = logging.getLogger(__name__)

MOST_MEMORY_BYTES = 2**30
"""Of addresses; the interpreter takes some tenths of it."""
_TELL_SECONDS = 0.5
_LONGEST_LINE = 2**20
_FOLDER = "unpacked"


class Request(Message):
    """What to unpack, and where to."""

    archive: str
    folder: str
    settings: ImportSettings


class Took(Message):
    """So far."""

    kind: Literal["took"] = "took"
    bytes_done: int


class Found(Message):
    """A file of the archive, and its number in the folder."""

    kind: Literal["found"] = "found"
    path: str
    number: int


class Ended(Message):
    """All files were told."""

    kind: Literal["ended"] = "ended"
    bytes_done: int


class Refused(Message):
    """The fields of a `SourceFailed`."""

    kind: Literal["refused"] = "refused"
    message: str
    code: str
    retryable: bool


Line: TypeAlias = Took | Found | Ended | Refused
_LINE: TypeAdapter[Line] = TypeAdapter(Line)


async def unpacked(archive: Path, work: Work) -> list[Fetched]:
    """Every regular file of an archive, below the folder of `work`; cancelling it ends the process.

    Raises:
        SourceFailed: as `archives.unpack`.
    """
    folder = work.folder / _FOLDER
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # Nothing of the environment but where the code is.
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
        limit=_LONGEST_LINE,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
    try:
        request = Request(archive=str(archive), folder=str(folder), settings=work.settings)
        with suppress(ConnectionError):  # then its output ends too
            process.stdin.write(request.model_dump_json().encode() + b"\n")
            await process.stdin.drain()
        found: list[Fetched] = []
        async for line in process.stdout:
            match _LINE.validate_json(line):
                case Took(bytes_done=bytes_done):
                    work.bytes_done = bytes_done
                case Found(path=path, number=number):
                    found.append(Fetched(path, folder / str(number)))
                case Ended(bytes_done=bytes_done):
                    work.bytes_done = bytes_done
                    return found
                case Refused(message=message, code=code, retryable=retryable):
                    raise SourceFailed(message, code=code, retryable=retryable)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.stdin.close()
        await asyncio.shield(process.wait())
    logger.warning("the unpacking of an archive ended with status %s and no word", process.returncode)
    raise SourceFailed(
        "the unpacking of the archive broke off; try again, and if that does not help, pack it anew",
        code="import_broken",
        retryable=True,
    )


def main() -> None:
    """The process."""
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = Request.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work = Work(request.settings, Path(request.folder))
    over = threading.Event()
    telling = threading.Thread(target=_tell, args=(work, over), daemon=True)
    telling.start()
    lines = _outcome(Path(request.archive), work)
    over.set()
    telling.join()
    for line in lines:
        _print(line)
    sys.stdout.flush()


def _outcome(archive: Path, work: Work) -> list[Line]:
    try:
        found = archives.unpack(archive, work)
    except SourceFailed as error:
        return [Refused(message=error.message, code=error.code, retryable=error.retryable)]
    except OSError as error:
        failure = disk_failure(error)
        return [Refused(message=failure.message, code=failure.code, retryable=failure.retryable)]
    files: list[Line] = [Found(path=each.path, number=int(each.file.name)) for each in found]
    return [*files, Ended(bytes_done=work.bytes_done)]


def _tell(work: Work, over: threading.Event) -> None:
    while not over.wait(_TELL_SECONDS):
        _print(Took(bytes_done=work.bytes_done))
        sys.stdout.flush()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _print(line: Line) -> None:
    sys.stdout.write(line.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
