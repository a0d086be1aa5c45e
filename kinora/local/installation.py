"""The installation that is backed up: running or not, of this data folder or of a settings file."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from command_api.backup.create import Source
from command_api.backup.errors import InstallationAway, TargetRefused
from command_api.settings import ApiSettings
from kinora.local.errors import DataFolderRefused
from kinora.local.folder import DataFolder
from kinora.local.servers import EmbeddedServers
from kinora.settings import SETTINGS_VARIABLE, SettingsRefused, read_settings


@asynccontextmanager
async def installation(folder: DataFolder) -> AsyncIterator[Source]:
    """Database and object store of a data folder; started for as long as needed when it is not running.

    Raises:
        InstallationAway: when there is none.
        LocalError: when its servers cannot be started.
    """
    if not folder.secrets.exists():
        raise InstallationAway(
            f"there is no installation in {folder.root}; set KINORA_HOME to its data folder"
        )
    async with AsyncExitStack() as stack:
        try:
            servers = await stack.enter_async_context(EmbeddedServers(folder.root, only=("postgres", "s3")))
        except DataFolderRefused as refused:
            if refused.code != "data_folder_in_use":
                raise
            yield _running(folder)
        else:
            yield Source(servers.postgres, servers.s3)


def settings_of(file: Path) -> ApiSettings:
    """The API's settings of an installation on several machines.

    Raises:
        SettingsRefused: when they cannot be read.
    """
    return read_settings(ApiSettings, {SETTINGS_VARIABLE: str(file)})


def refuse_inside(target: Path, folder: DataFolder) -> None:
    """A backup beside the data would be lost with them.

    Raises:
        TargetRefused: when `target` is inside the data folder, or the other way round.
    """
    one, other = target.resolve(), folder.root.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise TargetRefused(
            f"{target} and the data folder {folder.root} contain one another; name another place"
        )


def _running(folder: DataFolder) -> Source:
    """As the running API is connected."""
    try:
        settings = settings_of(folder.role_settings("api"))
    except SettingsRefused as error:
        raise InstallationAway(
            f"the service in {folder.root} is just starting or stopping; try again"
        ) from error
    return Source(settings.postgres, settings.s3)
