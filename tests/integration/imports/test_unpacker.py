"""Archives are taken apart in a process of their own, which knows no keys and may fall over."""

import asyncio
import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from command_api.imports.errors import SourceFailed
from command_api.imports.unpacker import unpacked
from command_api.imports.work import Work
from command_api.settings import ImportSettings
from tests.integration.messaging.world import eventually

FILES = {"captions.jsonl": b"{}", "clips/ünï.mp4": b"a" * 30_000}


def zipped(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(ImportSettings(reserve_bytes=0), tmp_path)


@pytest.fixture
def before_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Have the process do something in a shell first."""

    def do(shell: str) -> None:
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\n{shell}\nexec {sys.executable} "$@"\n')
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return do


async def test_files_come_back_and_no_key_goes_there(
    work: Work,
    before_it: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KINORA_CANARY", "canary")
    seen = work.folder / "environment"
    before_it(f"/usr/bin/env > {seen}")
    archive = work.folder / "archive"
    archive.write_bytes(zipped())

    fetched = await unpacked(archive, work)

    assert {each.path: each.file.read_bytes() for each in fetched} == FILES
    assert work.bytes_done == 30_002
    names = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert "PYTHONPATH" in names
    assert names <= {"PYTHONPATH", "PYTHONUTF8", "PWD", "OLDPWD", "SHLVL", "_"}


async def test_an_archive_that_asks_for_gigabytes_of_memory(work: Work) -> None:
    content = bytearray(zipped(zipfile.ZIP_LZMA))
    window = content.index(b"\x05\x00\x5d") + 3  # behind the length and first byte of LZMA's properties
    content[window : window + 4] = (3 * 2**30).to_bytes(4, "little")
    (work.folder / "archive").write_bytes(content)

    with pytest.raises(SourceFailed, match="absurdly large") as caught:
        await unpacked(work.folder / "archive", work)

    assert caught.value.code == "archive_unsafe"


async def test_a_disk_that_is_full(work: Work, before_it: Callable[[str], None]) -> None:
    before_it("ulimit -f 8")  # blocks, of 512 or 1024 bytes: as a quota would
    (work.folder / "archive").write_bytes(zipped())

    with pytest.raises(SourceFailed, match="free some") as caught:
        await unpacked(work.folder / "archive", work)

    assert (caught.value.code, caught.value.retryable) == ("import_disk_full", True)


@pytest.mark.parametrize("how", ["killed", "cancelled"])
async def test_it_leaves_no_process(work: Work, how: str) -> None:
    os.mkfifo(work.folder / "archive")  # nobody writes there, so it waits

    async def running() -> psutil.Process | None:
        found = [each for each in psutil.Process().children() if "unpacker" in " ".join(each.cmdline())]
        return found[0] if found else None

    unpacking = asyncio.create_task(unpacked(work.folder / "archive", work))
    process = await eventually(running, "the process")
    if how == "killed":
        process.kill()
        with pytest.raises(SourceFailed) as caught:
            await unpacking
        assert (caught.value.code, caught.value.retryable) == ("import_broken", True)
    else:
        unpacking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unpacking
    assert not process.is_running()
