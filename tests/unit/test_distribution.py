"""Bundles of test files name files that there are, and every file that needs the shared service is in one."""

from pathlib import Path

from tests.distribution import BUNDLES, LONG, last_of_bundles

ROOT = Path(__file__).parents[2]
BUNDLED = {file for files in BUNDLES.values() for file in files}


def test_every_name_is_a_file() -> None:
    assert [file for file in (*BUNDLED, *LONG) if not (ROOT / file).is_file()] == []


def test_what_is_shared_ends_with_the_last_test_that_is_in_a_bundle() -> None:
    first, second = (f"{files[0]}::test" for files in BUNDLES.values())
    other = f"{LONG[0]}::test[tests/faults/test_killed.py::x]"
    assert last_of_bundles(first, other)
    assert last_of_bundles(second, None)
    assert not last_of_bundles(first, second), "one process alone goes through both"
    assert not last_of_bundles(other, None)


def test_whoever_needs_the_shared_service_is_in_a_bundle() -> None:
    sharing = {
        file.relative_to(ROOT).as_posix()
        for folder in ("acceptance", "faults")
        for file in (ROOT / "tests" / folder).glob("test_*.py")
        if "service: Service" in file.read_text()
    }
    assert sharing == BUNDLED
