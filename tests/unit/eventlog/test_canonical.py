"""The fast writer writes what the reference one does, or leaves it to that one."""

import copy
import math
import struct

import orjson
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from command_api.eventlog.canonical import canonical_json

NUMBERS = st.one_of(
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.integers(0, 2**64 - 1)
    .map(lambda bits: struct.unpack(">d", struct.pack(">Q", bits))[0])
    .filter(math.isfinite),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, 1e-5, 9.999999e-6, 1e-6, 1e-7, 1e15, 1e16, 1e20, 1e21, 5e-324, 2.0**53]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)


@given(st.dictionaries(st.text(), VALUES))
def test_it_writes_what_the_reference_writes(value: dict[str, object]) -> None:
    assert canonical_json(copy.deepcopy(value)) == rfc8785.dumps(value)


@given(st.floats(1e-5, 1e15) | st.floats(-1e15, -1e-5))
def test_numbers_of_usual_size_take_the_fast_way(number: float) -> None:
    """Otherwise the property above would hold of the reference writer alone."""
    expected = rfc8785.dumps({"n": number})
    if not number.is_integer():
        assert orjson.dumps({"n": number}) == expected
    assert canonical_json({"n": number}) == expected


@pytest.mark.parametrize("key", ["\U00010000", "\uffff", "é"])
def test_keys_are_in_the_order_of_utf_16(key: str) -> None:
    value = {key: 1, "\ue000": 2, "a": 3}
    assert canonical_json(dict(value)) == rfc8785.dumps(value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 2**53, -(2**53), 10**30, object(), b"bytes", "\ud800"])
def test_what_has_no_exact_form_is_refused_by_the_reference(bad: object) -> None:
    with pytest.raises(rfc8785.CanonicalizationError):
        canonical_json({"value": bad})
