"""RFC 8785 JSON, by a fast writer where it provably writes the same and by the reference one elsewhere.

orjson's text differs from RFC 8785 in how it writes some numbers and in the order of some keys. Those
numbers are written by `rfc8785`, and so is a whole value with such keys, or with anything that has no
canonical form: the errors are always `rfc8785`'s.
"""

from typing import Any

import orjson
import rfc8785

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER | orjson.OPT_PASSTHROUGH_SUBCLASS

# Both writers take the shortest digits that are read back as the same number. Between these two both also
# write them without an exponent.
_SMALLEST, _LARGEST = 1e-5, 1e15


Number = tuple[Any, Any, float]
"""A number that orjson would write differently: its dict or list, its key or index, and itself."""


class _LeftToReference(Exception):
    """The two would order these keys differently."""


def canonical_json(value: dict[str, Any]) -> bytes:
    """The RFC 8785 form of a fresh object of dicts, lists and plain values; its numbers may be replaced.

    Raises:
        rfc8785.CanonicalizationError: when a value has no exact JSON form.
    """
    odd: list[Number] = []
    try:
        _object(value, odd)
        for container, place, number in odd:
            container[place] = orjson.Fragment(rfc8785.dumps(number))
        return orjson.dumps(value, option=_OPTIONS)
    except (_LeftToReference, TypeError):  # orjson's own errors are TypeErrors
        for container, place, number in odd:
            container[place] = number
        return rfc8785.dumps(value)


def _object(value: dict[str, Any], odd: list[Number]) -> None:
    for key, item in value.items():
        # RFC 8785 orders keys by UTF-16 units and orjson by code points: the same up to U+D7FF.
        if not key.isascii():
            raise _LeftToReference
        kind = type(item)
        if kind is float:
            _number(item, value, key, odd)
        elif kind is dict:
            _object(item, odd)
        elif kind is list:
            _array(item, odd)


def _array(items: list[Any], odd: list[Number]) -> None:
    for index, item in enumerate(items):
        kind = type(item)
        if kind is float:
            _number(item, items, index, odd)
        elif kind is dict:
            _object(item, odd)
        elif kind is list:
            _array(item, odd)


def _number(number: float, container: Any, place: Any, odd: list[Number]) -> None:
    if _SMALLEST <= number < _LARGEST or -_LARGEST < number <= -_SMALLEST or number == 0:
        if number.is_integer():
            container[place] = int(number)  # 2.0 is written 2, and -0.0 is written 0
    else:
        odd.append((container, place, number))
