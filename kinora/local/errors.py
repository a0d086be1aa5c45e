"""What can go wrong when servers are started on this machine.

LocalError
├── DataFolderRefused   the folder is in use, or is not one of ours
├── PortTaken           another program listens on a port that we keep
├── BinaryMissing       an optional dependency is not installed
├── HostUnsuitable      this machine cannot run a server the way we must
└── ChildFailed         a process ended, or was not ready in time
"""

from schemas.errors import KinoraError


class LocalError(KinoraError):
    """An embedded server or role cannot run."""

    code = "local"


class DataFolderRefused(LocalError):
    code = "data_folder_refused"


class PortTaken(LocalError):
    code = "port_taken"


class BinaryMissing(LocalError):
    code = "binary_missing"


class HostUnsuitable(LocalError):
    code = "host_unsuitable"


class ChildFailed(LocalError):
    code = "child_failed"
    retryable = True
