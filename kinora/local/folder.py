"""Where everything of one installation lives: the only place that spells the data folder's names."""

from dataclasses import dataclass
from pathlib import Path

from kinora.local.errors import DataFolderRefused


@dataclass(frozen=True)
class DataFolder:
    """The paths below one data folder. Only the owner may enter it."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def ports(self) -> Path:
        return self.root / "ports.json"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets.json"

    @property
    def credentials(self) -> Path:
        """Whom people and programs on this machine log in as."""
        return self.root / "credentials.json"

    @property
    def settings(self) -> Path:
        """What people set otherwise than `kinora up` would, per role."""
        return self.root / "settings.json"

    @property
    def agent(self) -> Path:
        """Who the local agent is."""
        return self.root / "agent.json"

    @property
    def agent_seed(self) -> Path:
        """The local agent's key until it has joined."""
        return self.root / "agent.seed"

    @property
    def agent_work(self) -> Path:
        return self.root / "agent"

    @property
    def imports(self) -> Path:
        """Files that are being imported."""
        return self.root / "imports"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def s3(self) -> Path:
        return self.root / "s3"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """What lives as long as the processes: settings, ready files, process ids."""
        return self.root / "run"

    @property
    def metrics_token(self) -> Path:
        """What a scraper sends."""
        return self.run / "metrics.token"

    @property
    def scrape_configuration(self) -> Path:
        """For Prometheus."""
        return self.run / "prometheus.yml"

    def role_settings(self, role: str) -> Path:
        """What a role was started with."""
        return self.run / f"{role}.settings.json"

    @property
    def restoring(self) -> Path:
        """Here while a backup is being restored; left behind by a restore that broke off."""
        return self.root / "restoring.json"

    def prepare(self, *, restoring: bool = False) -> None:
        """Make the folder, or accept one that is ours; a half restored one only for `restoring`.

        Raises:
            DataFolderRefused: when it holds somebody else's files, or cannot be written.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = {entry.name for entry in self.root.iterdir()}
            # Settings may be there before the first start.
            if found - {self.settings.name} and self.lock.name not in found:
                raise DataFolderRefused(
                    f"{self.root} is not empty and not a data folder of Kinora (it holds {min(found)!r});"
                    " set KINORA_HOME to a new or empty folder"
                )
            if self.restoring.exists() and not restoring:
                raise DataFolderRefused(
                    f"a restore into {self.root} was not finished; repeat it, or remove the folder",
                    code="restore_unfinished",
                )
            self.root.chmod(0o700)
            self.lock.touch(mode=0o600)  # first of all: it marks the folder as ours
            for folder in (self.logs, self.run, self.nats, self.s3, self.agent_work):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DataFolderRefused(
                f"the data folder {self.root} cannot be used: {error}; set KINORA_HOME to one of your own"
            ) from error
