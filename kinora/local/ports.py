"""Ports on loopback, chosen once and kept, so that addresses survive a restart."""

import json
import random
import socket
from collections.abc import Iterable
from typing import Literal

import psutil
from pydantic import ValidationError

from kinora.local.errors import DataFolderRefused, PortTaken
from kinora.local.folder import DataFolder
from kinora.local.private_file import revealed_json, write_private
from schemas.base import Message

LOOPBACK = "127.0.0.1"
_RANGE = range(20_000, 30_000)
"""Below the ports that systems hand to outgoing connections: a kept port must not be borrowed meanwhile."""


class Ports(Message):
    """Who listens where."""

    api: int
    nats: int
    s3: int
    orchestrator_metrics: int
    projections_metrics: int
    auditor_metrics: int
    agent_metrics: int


def kept_ports(folder: DataFolder) -> Ports:
    """The data folder's ports; free ones are chosen the first time, and for servers that came later.

    Raises:
        DataFolderRefused: when the file of ports is damaged.
    """
    try:
        kept = json.loads(folder.ports.read_text())
    except FileNotFoundError:
        kept = {}
    except ValueError as error:
        raise _damaged(folder, str(error)) from error
    if not isinstance(kept, dict):
        raise _damaged(folder, "no object")
    known = {name: port for name, port in kept.items() if name in Ports.model_fields}
    missing = Ports.model_fields.keys() - known.keys()
    try:
        ports = Ports.model_validate(known | _choose(missing, taken=known.values()))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise _damaged(folder, f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error
    if missing:
        write_private(folder.ports, revealed_json(ports))
    return ports


def _damaged(folder: DataFolder, why: str) -> DataFolderRefused:
    return DataFolderRefused(f"{folder.ports} is damaged ({why}); delete it to have new ports chosen")


def require_free(name: Literal["api", "nats", "s3"], port: int, folder: DataFolder) -> None:
    """Refuse to start a server whose port somebody else holds.

    Raises:
        PortTaken: names the port, its holder where the system tells, and the remedy.
    """
    if _is_free(port):
        return
    raise PortTaken(
        f"port {port} ({name}) on {LOOPBACK} is taken{_holder(port)};"
        f' end that program, or write another number for "{name}" into {folder.ports}'
    )


def taken_by(port: int) -> str | None:
    """Who listens on a port of ours, as far as the system tells; None when nobody does."""
    return None if _is_free(port) else _holder(port)


def _choose(names: Iterable[str], *, taken: Iterable[object]) -> dict[str, int]:
    """A free port for each of `names`, none of them `taken` by a server of ours that is not running yet."""
    ours = list(taken)
    # Not secret, only scattered: two data folders should not start looking at the same number.
    shuffled = random.sample(_RANGE, len(_RANGE))
    candidates = (port for port in shuffled if port not in ours and _is_free(port))
    try:
        return {name: next(candidates) for name in sorted(names)}
    except StopIteration:
        raise PortTaken(
            f"not enough ports are free on {LOOPBACK} from {_RANGE.start} to {_RANGE.stop - 1}"
        ) from None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do, so that connections of a server that has just ended do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return ""
