"""Origins on loopback, and work that is allowed to reach exactly one of its addresses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from command_api.imports.work import Work
from command_api.settings import ImportSettings
from tests.integration.imports.origin import Origin, serving

ALLOWED = ImportSettings(
    allowed_networks=("127.0.0.1/32",), max_bytes=10**6, reserve_bytes=0, max_seconds=30, hub_url=""
)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving() as running:
        yield running


@pytest.fixture
def forbidden() -> Iterator[Origin]:
    """On an address that nobody allowed."""
    with serving("127.0.0.2") as running:
        yield running


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "work").mkdir()
    return Work(ALLOWED, tmp_path / "work")
