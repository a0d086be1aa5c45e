"""What is wrong with a request, field by field: the value that was given and what is possible instead."""

import json
import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from schemas.errors import FieldError
from schemas.naming import instead_of

Fault = Mapping[str, Any]
"""One of pydantic's `errors()`."""

SECRETS = frozenset({"password", "refresh_token", "access_token", "token", "value", "uri", "public_key"})
"""Fields whose value is never repeated, in no answer and no log; a `public_key` may be the secret half."""
MOST = 100
_SHOWN_CHARACTERS = 60
_ID = re.compile(r"\^([a-z]{2,4})_\[0-9a-f\]\{32\}\$")
_RULE = re.compile(r"^(?:Input|String|Tuple|List|Dictionary|Value) should ")

_SHAPES: Mapping[str, str] = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "must be of the letters a to z, digits, dots, dashes and underscores,"
    " and begin with a letter or digit",
    r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$": "must be an address such as name@example.org",
    r"^[\x21-\x7e]+$": "must be of printable ASCII characters without space",
    r"^[a-z0-9][a-z0-9-]{0,62}$": "must be 1 to 63 small letters, digits and dashes, no dash first",
    r"^[0-9a-f]{64}$": "must be 64 hexadecimal digits in small letters",
}
"""What a pattern asks for, in words."""

_TIME = "must be a time with its zone, such as 2026-01-31T12:00:00Z"

_POSSIBLE: Mapping[str, str] = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_type": "must be a text",
    "string_unicode": "must be valid Unicode",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "must have at least {min_length} of them",
    "too_long": "may have at most {max_length} of them",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number with fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "tuple_type": "must be a JSON array",
    "json_invalid": "must be JSON: {error}",
    "union_tag_invalid": "must have as {discriminator} one of {expected_tags}",
    "union_tag_not_found": "must have a {discriminator} that says what it is",
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "timezone_aware": _TIME,
}


def wrong_fields(faults: Sequence[Fault], body: Any = None, given: Any = None) -> tuple[FieldError, ...]:
    """The faults that a person can act on, at most `MOST`.

    `body` is the body's type, to list its fields; `given` the document that was sent, to point into.
    """
    places = [_place(fault, given) for fault in faults]
    inside = {place[:length] for place in places for length in range(1, len(place))}
    found: dict[tuple[Any, ...], FieldError] = {}
    for fault, place in zip(faults, places, strict=True):
        # A tuple drops items that are wrong and then counts too few: the items' faults say it all.
        if fault["type"] == "too_short" and place in inside and fault["ctx"]["actual_length"] == 0:
            continue
        tried = len(place) < len(fault["loc"])
        if tried:
            # One of several things that a field may be: of what came closer is told what is wrong inside.
            if place in inside:
                continue
            if (other := found.get(place)) is not None:
                also = _sayable(_possible(fault).removeprefix("must "))
                found[place] = other.model_copy(update={"message": f"{other.message}, or {also}"})
                continue
        found.setdefault(place, _wrong_field({**fault, "loc": place}, None if tried else body))
        if len(found) == MOST:
            break
    return tuple(found.values())


def malformed_id(fault: Fault) -> str:
    """What to say of an id in the address that is none."""
    kind = str(fault["loc"][-1]).removesuffix("_id")
    if str(fault.get("type")).startswith(("int_", "greater_", "less_")):
        return _sayable(f"there is no {kind} {_shown(fault.get('input'))}: it {_possible(fault)}")
    rule = _ID.fullmatch(str(fault.get("ctx", {}).get("pattern", "")))
    shape = "" if rule is None else f": it is {rule[1]}_ and 32 hexadecimal digits"
    return _sayable(f"{_shown(fault.get('input'))} is not the id of any {kind}{shape}")


def _place(fault: Fault, given: Any) -> tuple[Any, ...]:
    """Where the fault is in the document, without pydantic's names of the types that were tried there."""
    where, *path = fault["loc"]
    if where != "body" or given is None:
        return (where, *path)
    place, at = [where], given
    for number, step in enumerate(path, start=1):
        last = number == len(path)
        if (isinstance(at, Mapping) and step in at) or (
            isinstance(at, list) and isinstance(step, int) and step < len(at)
        ):
            at = at[step]
        elif step != "[key]" and not (last and fault["type"] == "missing"):
            continue
        place.append(step)
    return tuple(place)


def _wrong_field(fault: Fault, body: Any) -> FieldError:
    where, *path = fault["loc"]
    path = [step for step in path if step != "[key]"]
    steps = path if where == "body" else [where, *path]
    pointer = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
    message = _unknown_field(path, body) if fault["type"] == "extra_forbidden" else _message(fault, path)
    return FieldError(pointer=_sayable(pointer), code=fault["type"], message=_sayable(message))


def _message(fault: Fault, path: Sequence[Any]) -> str:
    name, kind, context = _name(path), fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return f"{name} is missing; it is required"
    possible = _possible(fault)
    if SECRETS.intersection(path):
        return f"{name} {possible}"
    given = fault.get("input")
    if kind in ("too_short", "too_long"):
        return f"{name} has {context.get('actual_length', len(given or ()))} items; it {possible}"
    if isinstance(given, str) and kind == "string_too_short" and given != given.strip():
        possible += " beside space"
    # Of a whole body nothing is repeated: whatever it is, it was not meant to be one.
    return f"{name} is {_shown(given) if path else _sort(given)}; it {possible}"


def _possible(fault: Fault) -> str:
    if fault["type"] == "string_pattern_mismatch" and (shape := _shape(fault["ctx"]["pattern"])):
        return shape
    rule = _POSSIBLE.get(fault["type"])
    if rule is None:
        return _RULE.sub("must ", str(fault["msg"]))
    return rule.format_map(fault.get("ctx", {}))


def _shape(pattern: str) -> str | None:
    if identifier := _ID.fullmatch(pattern):
        return f"must be {identifier[1]}_ and 32 hexadecimal digits"
    return _SHAPES.get(pattern)


def _unknown_field(path: Sequence[Any], body: Any) -> str:
    # Its value is not repeated: a misspelled password is one, too.
    model = _model_at(body, path[:-1])
    if model is None:
        return f"there is no field {_shown(path[-1])}"
    return f"there is no field {_shown(path[-1])}{instead_of(str(path[-1]), model.model_fields)}"


def _model_at(annotation: Any, path: Sequence[Any]) -> type[BaseModel] | None:
    """The model that a path into a body leads to."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _model_at(arguments[0], path)
    if origin in (Union, UnionType):
        return next((model for each in arguments if (model := _model_at(each, path)) is not None), None)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return annotation
        field = annotation.model_fields.get(str(path[0]))
        return None if field is None else _model_at(field.annotation, path[1:])
    if origin in (tuple, list) and path:
        return _model_at(arguments[0], path[1:])
    return None


def _name(path: Sequence[Any]) -> str:
    """The last named step with the places behind it: ``target_modalities[1]``."""
    places = ""
    for step in reversed(path):
        if isinstance(step, str):
            return step[:_SHOWN_CHARACTERS] + places
        places = f"[{step}]{places}"
    return "the body" + places


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS:
        return f"{_spelled(value[:_SHOWN_CHARACTERS])}… ({len(value)} characters)"
    if value is None or isinstance(value, str | int | float):
        text = _spelled(value)
        return text if len(text) <= _SHOWN_CHARACTERS * 6 else f"{text[:_SHOWN_CHARACTERS]}…"
    return _sort(value)


def _spelled(value: str | float | None) -> str:
    return json.dumps(value, ensure_ascii=not isinstance(value, str) or not value.isprintable())


def _sort(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case str() | bytes():
            return "a text"
        case int() | float():
            return "a number"
        case Mapping():
            return "a JSON object"
        case _:
            return "a JSON array"


def _sayable(text: str) -> str:
    """Half a surrogate pair, which JSON can spell, cannot leave as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
