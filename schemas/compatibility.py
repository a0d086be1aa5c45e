"""What may change in a released event version: fields may be added, and nothing else.

A released version is a promise to everybody who reads old events or subscribes to new ones. Its JSON Schema
may gain optional fields and words of an enumeration (readers ignore what they do not know); a field that is
gone, or that means something else, needs a new version with an upcaster and a downcaster.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = dict[str, Any]

_ANNOTATIONS = frozenset({"$id", "$schema", "$defs", "title", "description", "default", "examples"})
_DEFINITION = "#/$defs/"


def structure(schema: Schema) -> Schema:
    """The schema without words for people, references put in place; this is what a release keeps."""
    resolved: Schema = _structure(schema, schema.get("$defs", {}))
    return resolved


def _structure(value: Any, definitions: Mapping[str, Any]) -> Any:
    match value:
        case {"$ref": str(name)}:
            return _structure(definitions[name.removeprefix(_DEFINITION)], definitions)
        case {"properties": dict(fields)}:
            rest = {key: each for key, each in value.items() if key != "properties"}
            # By name, so that a field called "title" or "default" is none of the annotations.
            named = {name: _structure(each, definitions) for name, each in sorted(fields.items())}
            return {**_structure(rest, definitions), "properties": named}
        case dict():
            return {
                key: _structure(each, definitions)
                for key, each in sorted(value.items())
                if key not in _ANNOTATIONS and key != "discriminator"
            }
        case list():
            return [_structure(each, definitions) for each in value]
        case _:
            return value


def broken(released: Any, current: Any, where: str = "") -> Iterator[str]:
    """Each way in which `current` breaks the promise of `released`; both as `structure` gives them."""
    if not isinstance(released, dict) or not isinstance(current, dict):
        if released != current:
            yield f"{where or 'it'} was {released!r} and is {current!r}"
        return
    for key in sorted(released.keys() | current.keys()):
        before, after = released.get(key), current.get(key)
        match key:
            case "properties":
                yield from _fields(before or {}, after or {}, where)
            case "required":
                for name in sorted(set(before or ()) - set(after or ())):
                    if name in current.get("properties", {}):
                        yield f"{_in(where, name)} was always there and is not any more"
            case "enum" | "const":
                yield from _words(released, current, where)
            case "anyOf" | "oneOf":
                yield from _choices(before or [], after or [], where)
            case "items" | "additionalProperties" if isinstance(before, dict) and isinstance(after, dict):
                yield from broken(before, after, _in(where, "*"))
            case _:
                if before != after:
                    yield f"{where or 'it'}: {key} was {before!r} and is {after!r}"


def _fields(before: Schema, after: Schema, where: str) -> Iterator[str]:
    for name, schema in before.items():
        if name not in after:
            yield f"{_in(where, name)} is gone"
        else:
            yield from broken(schema, after[name], _in(where, name))


def _words(released: Schema, current: Schema, where: str) -> Iterator[str]:
    gone = [word for word in _allowed(released) if word not in _allowed(current)]
    if gone:
        yield f"{where or 'it'} may no longer be {', '.join(map(repr, gone))}"


def _allowed(schema: Schema) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def _choices(before: list[Schema], after: list[Schema], where: str) -> Iterator[str]:
    for choice in before:
        if not any(next(broken(choice, each), None) is None for each in after):
            yield f"{where or 'it'} may no longer be {choice}"


def _in(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
