"""Ids: time-ordered, readable, and safe wherever they travel."""

import re
import time
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.ids import Prefix, Ticks, derived_id, id_prefix, id_uuid, new_id, uuid7

ZEROS = "0" * 32
PREFIXES = st.sampled_from(list(Prefix))


@settings(deadline=None)
@given(PREFIXES)
def test_a_new_id_names_its_kind_and_carries_its_uuid(prefix: Prefix) -> None:
    identifier = new_id(prefix)
    assert id_prefix(identifier) is prefix
    assert identifier == f"{prefix}_{id_uuid(identifier).hex}"
    assert re.fullmatch(r"[a-z]+_[0-9a-f]{32}", identifier)


def test_uuid7_has_version_variant_and_time() -> None:
    before = time.time_ns() // 1_000_000
    value = uuid7()
    after = time.time_ns() // 1_000_000
    assert value.version == 7
    assert value.variant == UUID(int=0, version=4).variant
    assert before <= value.int >> 80 <= after


def test_ids_do_not_repeat() -> None:
    assert len({uuid7() for _ in range(10_000)}) == 10_000


@given(st.lists(st.integers(0, 2**44), min_size=2, max_size=50))
def test_ids_only_go_forward_however_the_clock_jumps(milliseconds: list[int]) -> None:
    times = iter([each * 1_000_000 for each in milliseconds])
    ticks = Ticks(lambda: next(times))
    made = [uuid7(ticks) for _ in milliseconds]
    assert made == sorted(set(made))
    assert all(value.version == 7 and value.variant == UUID(int=0, version=4).variant for value in made)


def test_ids_of_a_clock_that_stands_still_go_forward_too() -> None:
    ticks = Ticks(lambda: 0)
    made = [uuid7(ticks) for _ in range(10_000)]
    assert made == sorted(set(made))


@settings(deadline=None)
@given(PREFIXES, st.text(max_size=40), st.text(max_size=40))
def test_a_derived_id_is_always_the_same_and_its_own(prefix: Prefix, name: str, other: str) -> None:
    parent = new_id(Prefix.JOB)
    assert derived_id(prefix, parent, name) == derived_id(prefix, parent, name)
    assert (derived_id(prefix, parent, name) == derived_id(prefix, parent, other)) == (name == other)


@pytest.mark.parametrize(
    "text", ["", "job", "job_xyz", f"JOB_{ZEROS}", f"job_{ZEROS}0", f"job_{ZEROS}\n", f"x job_{ZEROS}"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an id"):
        id_uuid(text)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="xyz"):
        id_prefix("xyz_" + "0" * 32)
