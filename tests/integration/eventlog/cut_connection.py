"""A proxy before PostgreSQL's socket that can cut a connection right after a COMMIT was carried out."""

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas.settings import PostgresSettings

COMMITTED = b"COMMIT\x00"
"""The tag of the server's CommandComplete message."""


class CuttingProxy:
    """Relays bytes; once armed, it swallows the reply to the next COMMIT and closes both ends."""

    def __init__(self, server: PostgresSettings, folder: Path) -> None:
        self._server = f"{server.host}/.s.PGSQL.{server.port}"
        self.settings = server.model_copy(update={"host": str(folder)})
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/.s.PGSQL.{server.port}")
        self._listener.listen()
        self._armed = threading.Event()
        self.cuts = 0
        self._threads = [threading.Thread(target=self._accept)]

    def arm(self) -> None:
        self._armed.set()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            for pair in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._relay, args=pair)
                self._threads.append(thread)
                thread.start()

    def _relay(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        try:
            while data := source.recv(65536):
                if replies and self._armed.is_set() and COMMITTED in data:
                    self._armed.clear()
                    self.cuts += 1
                    break
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()
