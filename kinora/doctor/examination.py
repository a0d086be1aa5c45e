"""The whole of what `kinora doctor` looks at, in the order in which it is told."""

from kinora.doctor import insides, machine, processes, service
from kinora.doctor.finding import Finding
from kinora.local.folder import DataFolder


def examined(folder: DataFolder, *, probe: bool) -> list[Finding]:
    """What is found; with `probe`, the engine's 4-bit kernel is tried, which takes seconds."""
    return [
        machine.python(),
        machine.disk(folder.root),
        *(machine.engine() if probe else ()),
        *processes.data_folder(folder),
        *processes.processes(folder),
        *processes.agent_credentials(folder),
        *service.service(folder.root),
        *insides.insides(folder),
    ]
