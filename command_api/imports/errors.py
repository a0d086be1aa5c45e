"""Why files from elsewhere could not be had."""

import errno

from command_api.network.addresses import networks
from command_api.network.guard import Guard
from command_api.settings import ImportSettings
from schemas.errors import KinoraError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Full, or as good as: a quota or a limit on the size of files."""


class SourceFailed(KinoraError):
    """The source cannot be reached, refuses, or offers what cannot be used; `code` tells which.

    Messages name the source as the user gave it, never an address with a signature or a credential.
    """

    code = "source_failed"

    def __init__(self, message: str, *, code: str, retryable: bool = False) -> None:
        super().__init__(message, code=code)
        self.retryable = retryable


def import_guard(settings: ImportSettings) -> Guard:
    """What imports may connect to, told as a `SourceFailed`."""
    return Guard(networks(settings.allowed_networks), "imports.allowed_networks", SourceFailed)


def disk_failure(error: OSError) -> SourceFailed:
    """What an error of this machine's own disk means for an import."""
    if error.errno in DISK_FULL:
        return SourceFailed(
            "the disk of imports is full; free some of it, or import less",
            code="import_disk_full",
            retryable=True,
        )
    return SourceFailed(
        "the work folder of imports cannot be used; the service's log says why",
        code="import_broken",
        retryable=True,
    )
