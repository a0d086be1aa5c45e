"""What may be chosen for a job, as the API's schema has it: names, defaults, ranges and meanings."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from schemas.training import Hyperparameters

Schema = Mapping[str, Any]


class Parameter(NamedTuple):
    """One hyperparameter, in words."""

    name: str
    default: str
    allowed: str
    description: str


def parameters() -> list[Parameter]:
    """Every hyperparameter, in the order of the schema; a field of a group is named ``group.field``."""
    schema = Hyperparameters.model_json_schema()
    return list(_parameters(schema["properties"], schema.get("$defs", {}), ""))


def _parameters(fields: Schema, definitions: Schema, prefix: str) -> Iterator[Parameter]:
    for name, field in fields.items():
        value = _value(field, definitions)
        default = field.get("default", value.get("default"))
        yield Parameter(prefix + name, _told(default), _allowed(value), field.get("description", ""))
        yield from _parameters(value.get("properties", {}), definitions, f"{prefix}{name}.")


def _value(field: Schema, definitions: Schema) -> Schema:
    """The schema of what a field holds when it is not null."""
    choices = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    value: Schema = choices[0]
    if (reference := value.get("$ref")) is not None:
        value = definitions[reference.rpartition("/")[2]]
    return value


def _told(default: Any) -> str:
    match default:
        case None | {}:
            return "none"
        case str():
            return default
        case list():
            return ", ".join(map(_told, default))
        case _:
            return json.dumps(default)


def _allowed(value: Schema) -> str:
    match value:
        case {"enum": choices}:
            return ", ".join(map(_told, choices))
        case {"const": choice}:
            return _told(choice)
        case {"type": "boolean"}:
            return "true, false"
        case {"type": "integer" | "number"}:
            return _range(value)
        case {"type": "array", "items": items}:
            return f"any of {_allowed(items)}"
        case {"type": "object", "patternProperties": patterns}:
            return f"name: {_allowed(next(iter(patterns.values())))}"
        case {"type": "object"}:
            return "fields below"
        case _:
            return str(value.get("type", ""))


def _range(value: Schema) -> str:
    low = _figure(value["minimum"]) if "minimum" in value else f"above {_figure(value['exclusiveMinimum'])},"
    if "maximum" in value:
        return f"{low} to {_figure(value['maximum'])}"
    return f"{low} to below {_figure(value['exclusiveMaximum'])}"


def _figure(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) or not number.is_integer() else f"{int(number):,}"
