"""A real `kinora up` as a child process, for acceptance and fault tests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from kinora.client import Client, Credentials, Json
from schemas.envelope import split_type
from tests.otlp import Receiver

KINORA = str(Path(sys.executable).with_name("kinora"))


T = TypeVar("T")

MOST_PAUSE_SECONDS = 0.25
"""Between two looks at what is waited for."""


def wait_until(condition: Callable[[], T | None], *, seconds: float, what: str) -> T:
    """The first truthy result of `condition`; polls because the condition lives in other processes.

    More rarely as time goes by: who asks often takes the time of what is waited for.
    """
    began = time.monotonic()
    while True:
        result = condition()
        if result:
            return result
        waited = time.monotonic() - began
        assert waited < seconds, f"waited {seconds} s in vain for {what}"
        time.sleep(min(MOST_PAUSE_SECONDS, 0.05 + waited / 20))


class Service:
    """A `kinora up` on a data folder of its own; it can be stopped and started again."""

    def __init__(self, home: Path, log: Path, receiver: Receiver | None = None) -> None:
        self.home = home
        self._receiver = receiver
        self.log = log
        self.process: subprocess.Popen[str] | None = None

    @property
    def import_root(self) -> Path:
        """What lies here may be imported."""
        return self.home.parent / "import-root"

    @property
    def environment(self) -> dict[str, str]:
        traces = {} if self._receiver is None else {"OTEL_EXPORTER_OTLP_ENDPOINT": self._receiver.url}
        return (
            os.environ
            | {
                "KINORA_HOME": str(self.home),
                "KINORA_IMPORT_ROOTS": str(self.import_root),
                "NO_COLOR": "1",
                "COLUMNS": "200",
            }
            | traces
        )

    @property
    def receiver(self) -> Receiver:
        """Where it sends its traces."""
        assert self._receiver is not None
        return self._receiver

    def start(self) -> None:
        """Start it and wait until its agent is online."""
        said = self.log.stat().st_size if self.log.exists() else 0
        self.launch()
        wait_until(lambda: self._says_ready(said), seconds=90, what="`kinora up` to be ready")
        with self.client() as client:
            wait_until(
                lambda: any(agent["status"] == "online" for agent in client.pages("/agents")),
                seconds=30,
                what="an agent online",
            )

    def launch(self) -> "subprocess.Popen[str]":
        """Start it and wait for nothing."""
        self.import_root.mkdir(exist_ok=True)
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                [KINORA, "up"],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        return self.process

    def _says_ready(self, after: int) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        return b"ready at " in self.log.read_bytes()[after:]

    def stop(self) -> int:
        """Ctrl-C, as a person would; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)

    def cli(
        self, *arguments: str, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run the real CLI against this service."""
        done = subprocess.run(
            [KINORA, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            said = f"{done.stdout}\n{done.stderr}"
            assert done.returncode == 0, f"kinora {' '.join(arguments)}: {done.returncode}\n{said}"
        return done

    def client(self) -> Client:
        """A session of the service's owner, patient with a service that is being restarted.

        Logged in once for all of them, because checking a password is meant to cost.
        """
        session_file = self.home / "run" / "tests-session.json"
        return Client(Credentials.find(self.home), patience_seconds=30, session_file=session_file)

    def role(self, name: str) -> psutil.Process:
        """The process of a role of ours."""
        return self._child(lambda command: command[1:4] == ["-m", "kinora", name], name)

    def found(self, look_up: Callable[[str], psutil.Process], name: str) -> bool:
        """Whether `role` or `server` finds a process of that name just now."""
        try:
            return look_up(name).status() != psutil.STATUS_ZOMBIE
        except (LookupError, psutil.Error):
            return False

    def server(self, program: str) -> psutil.Process:
        """The process of an embedded server, by its program's name."""
        return self._child(lambda command: Path(command[0]).name == program, program)

    def _child(self, fits: Callable[[list[str]], bool], name: str) -> psutil.Process:
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                command = child.cmdline()
            except psutil.Error:
                continue
            if command and fits(command):
                return child
        raise LookupError(f"no {name} is running")

    def bucket(self) -> Path:
        """Where the embedded store keeps its objects as plain files."""
        settings = json.loads((self.home / "run" / "api.settings.json").read_text())
        return self.home / "s3" / str(settings["s3"]["bucket"])

    def engines(self) -> list[psutil.Process]:
        """Engine processes of this service's agent, orphans included."""
        found = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            command = process.info["cmdline"] or []
            # Its environment names nothing of ours, but it works in a folder of its attempt.
            inside = (process.info["cwd"] or "").startswith(str(self.home))
            if command[1:3] == ["-m", "qlora_engine"] and "--probe" not in command and inside:
                found.append(process)
        return found


@contextmanager
def running_service(folder: Path, settings: Json | None = None) -> Iterator[Service]:
    """A started `kinora up` below `folder`, with `settings.json` in its data folder; stopped in the end."""
    with Receiver() as receiver:
        service = Service(folder / "home", folder / "up.log", receiver)
        if settings is not None:
            service.home.mkdir(mode=0o700)
            (service.home / "settings.json").write_text(json.dumps(settings))
        try:
            service.start()
            yield service
        finally:
            if service.process is not None and service.process.poll() is None:
                service.stop()


def job_events(client: Client, job_id: str) -> list[Json]:
    """A job's whole history, oldest first."""
    return list(client.pages(f"/jobs/{job_id}/events"))


def types(events: list[Json]) -> list[str]:
    """Event types without their common prefix and their version."""
    return [split_type(event["type"])[0].removeprefix("kinora.job.") for event in events]


def read_report(folder: Path) -> Json:
    report: Json = json.loads((folder / "report.json").read_text())
    return report
