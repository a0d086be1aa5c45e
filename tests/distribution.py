"""Which test files one process works off together, and which come first.

Files that share one `kinora up` are two bundles, so that it is started, filled and kept running twice and not
by every process. What takes longest begins first, so that all processes end at about the same time.
"""

from pathlib import PurePath
from typing import Final

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

BUNDLES: Final = {
    "service-1": (
        "tests/acceptance/test_backup.py",
        "tests/acceptance/test_bad_inputs.py",
        "tests/acceptance/test_imports.py",
        "tests/acceptance/test_main_job.py",
        "tests/acceptance/test_observability.py",
        "tests/acceptance/test_storage.py",
    ),
    "service-2": (
        "tests/acceptance/test_forgotten.py",
        "tests/acceptance/test_subscribers.py",
        "tests/acceptance/test_webhook_receiver.py",
        "tests/faults/test_doctor.py",
        "tests/faults/test_frozen.py",
        "tests/faults/test_killed.py",
    ),
}
LONG: Final = (
    "tests/acceptance/test_demo.py",
    "tests/faults/test_revoked.py",
    "tests/simulation/test_seeds_even.py",
    "tests/simulation/test_seeds_odd.py",
    "tests/simulation/test_models_true.py",
    "tests/simulation/test_mutations.py",
    "tests/integration/trainer_agent/test_attempts.py",
)
_BUNDLE_OF: Final = {file: name for name, files in BUNDLES.items() for file in files}
_TURN: Final = {file: turn for turn, file in enumerate((*_BUNDLE_OF, *LONG))}


def longest_first(items: list[pytest.Item]) -> None:
    """Put tests into the order in which they are given out; within a file nothing moves."""
    items.sort(key=lambda item: _TURN.get(_file_of(item.nodeid), len(_TURN)))


class Bundles(LoadFileScheduling):
    """Gives out bundles, and the other files one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = _file_of(nodeid)
        return _BUNDLE_OF.get(file, file)


def last_of_bundles(nodeid: str, following: str | None) -> bool:
    """Whether this test is of a bundle and nothing that comes after it is."""
    return _file_of(nodeid) in _BUNDLE_OF and (following is None or _file_of(following) not in _BUNDLE_OF)


def _file_of(nodeid: str) -> str:
    return PurePath(nodeid.split("::", 1)[0]).as_posix()
