"""Drives the real engine process from tests: control lines in, updates out."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from qlora_engine.updates import UPDATE, Start, Stop, Update
from schemas.training import EngineSpec


class EngineChild:
    """A ``python -m qlora_engine`` and the pipe that its updates come from."""

    def __init__(self, log: Path) -> None:
        read, write = os.pipe()
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "qlora_engine",
                    "--updates-fd",
                    str(write),
                    "--parent-pid",
                    str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=stderr,
                stderr=stderr,
                pass_fds=(write,),
            )
        os.close(write)
        self._updates = os.fdopen(read, "rb")

    def __enter__(self) -> "EngineChild":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._updates.close()

    def send(self, control: Start | Stop) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(control.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()

    def start(self, spec: EngineSpec) -> None:
        self.send(Start(spec=spec))

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def updates(self) -> Iterator[Update]:
        """Until the process closes the pipe."""
        for line in self._updates:
            yield UPDATE.validate_json(line)

    def until(self, kind: str) -> Update:
        for update in self.updates():
            if update.kind == kind:
                return update
        raise AssertionError(f"the engine ended without {kind}")
