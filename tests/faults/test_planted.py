"""The list of `make soak MUTATIONS=1` stays honest: its faults and failpoints are still of today's code."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import mutation_results
from command_api.eventlog import recorder
from tests.faults import failpoints
from tests.faults.failpoints import Failpoint
from tests.faults.plane import ROLE_OF
from tests.faults.planted import PLANTED, Planted, Search
from tests.faults.traffic import Finding
from tests.faults.wire import _only_notifies
from tests.simulation.mutations import MUTATIONS
from tests.simulation.rewriting import applied

POINTS = [point for point in vars(failpoints).values() if isinstance(point, Failpoint)]


@pytest.fixture
def armory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in failpoints.environment(tmp_path, seed=1).items():
        monkeypatch.setenv(name, value)
    failpoints.seed_chance("api")
    return tmp_path


def test_there_are_at_least_twelve_and_each_is_known_to_the_simulation() -> None:
    names = [planted.name for planted in PLANTED]
    assert len(set(names)) == len(names) >= 12
    assert set(names) <= {mutation.name for mutation in MUTATIONS}
    assert all(planted.rules for planted in PLANTED)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda one: one.name.replace(" ", "-"))
def test_it_is_put_into_todays_code(planted: Planted) -> None:
    for role in {ROLE_OF[name] for name in planted.names}:
        for faulty in (False, True):
            with applied(planted.patches(role, faulty=faulty)):
                pass


def test_every_failpoint_is_of_use() -> None:
    assert {point.name for planted in PLANTED for point in planted.points} == {p.name for p in POINTS}
    assert len({point.name for point in POINTS}) == len(POINTS)


def test_a_failpoint_strikes_while_it_is_armed_and_leaves_a_line(
    armory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[object] = []
    monkeypatch.setattr(failpoints, "_die", lambda: deaths.append(None))
    with applied([failpoints.killed_at_command_row.patch]):
        for arms in (False, True):
            if arms:
                failpoints.arm(armory)
            for _ in range(500):
                recorder._command_columns(0, [recorder.Entry(0)])
            assert bool(deaths) is arms
    assert failpoints.strikes(armory) == ["killed_at_command_row"] * len(deaths)
    assert len(deaths) < 100, "by chance, not always"
    failpoints.disarm(armory)
    assert recorder._command_columns(0, [recorder.Entry(0)]) is None


def test_the_same_seed_strikes_in_the_same_places(armory: Path) -> None:
    failpoints.arm(armory)
    runs = []
    for _ in range(2):
        (armory / "strikes").unlink(missing_ok=True)
        failpoints.seed_chance("api")
        runs.append([failpoints._strikes("any", 0.1) for _ in range(100)])
    assert runs[0] == runs[1]
    assert 0 < sum(runs[0]) < 40


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        (b"", False),
        (b"A\x00\x00\x00\x06ab", True),
        (b"A\x00\x00\x00\x06abA\x00\x00\x00\x05a", True),
        (b"A\x00\x00\x00\x06abC\x00\x00\x00\x05a", False),
        (b"Z\x00\x00\x00\x05I", False),
    ],
)
def test_only_notifications_are_lost(said: bytes, lost: bool) -> None:
    assert _only_notifies(said) is lost


HIT = [Search(planted, found=Finding("seen_gap", "of two")) for planted in PLANTED[:12]]


@pytest.mark.parametrize(
    ("searches", "met"),
    [
        (HIT, True),
        (HIT[:11], False),
        ([*HIT, Search(PLANTED[12])], False),
        ([*HIT[:11], replace(HIT[11], false_alarms=[Finding("seen_gap", "of three")])], False),
        ([*HIT[:11], replace(HIT[11], unmet=frozenset({"slow_look"}))], False),
    ],
    ids=["all found", "too few", "one not found", "a false alarm", "a control that met nothing"],
)
def test_the_command_fails_unless_all_are_found_and_the_right_code_is_not(
    searches: list[Search], met: bool
) -> None:
    assert all(result.met is not False for result in mutation_results(searches)) is met
