"""An event of any registered type, drawn from its JSON Schema; the same seed draws the same one."""

import contextlib
import re
from datetime import UTC, datetime
from math import inf
from random import Random
from typing import Any

from pydantic import ValidationError

from schemas.events import Event
from schemas.ids import Prefix

FLOATS = (0.0, -1.5, 1e-7, 0.1, 1 / 3, 1.25, 1e21, 2.0**53, 5e-324, 1.7976931348623157e308)
TEXTS = ("", "a", 'quote " and \\', "é 🎬 \u2028", "\x00\x1f\n", "\ufeff", "中文")


def any_value(
    schema: dict[str, Any], definitions: dict[str, Any], random: Random, left_out: float = 0.0
) -> Any:
    """Something that a JSON Schema of ours allows; knows just the keywords that our events use.

    Of the fields that have a default, the share `left_out` is not given.
    """
    match schema:
        case {"$ref": name}:
            return any_value(definitions[name.removeprefix("#/$defs/")], definitions, random, left_out)
        case {"anyOf": choices}:
            return any_value(random.choice(choices), definitions, random, left_out)
        case {"enum": choices}:
            return random.choice(choices)
        case {"const": only}:
            return only
        case {"type": "object", "properties": fields}:
            return {
                name: any_value(one, definitions, random, left_out)
                for name, one in fields.items()
                if "default" not in one or not left_out or random.random() >= left_out
            }
        case {"type": "object", "additionalProperties": inner}:
            return {key: any_value(inner, definitions, random, left_out) for key in random.sample(TEXTS, 2)}
        case {"type": "object"}:
            return {}
        case {"type": "array", "items": {"enum": choices}}:
            return random.sample(choices, random.randint(1, len(choices)))
        case {"type": "array", "items": inner}:
            least = schema.get("minItems", 0)
            count = random.randint(least, least + 2)
            return [any_value(inner, definitions, random, left_out) for _ in range(count)]
        case {"type": "string", "pattern": pattern} if "[0-9a-f]{32}" in pattern:
            prefix = random.choice(re.findall("[a-z]{2,4}", pattern.partition("_")[0]) or list(Prefix))
            return f"{prefix}_{random.getrandbits(128):032x}"
        case {"type": "string", "pattern": "^[0-9a-f]{64}$"}:
            return f"{random.getrandbits(256):064x}"
        case {"type": "string", "pattern": "^U[A-Z2-7]{55}$"}:
            return "U" + "".join(random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=55))
        case {"type": "string", "format": "date-time"}:
            return datetime.fromtimestamp(random.getrandbits(32), UTC).isoformat()
        case {"type": "string", "minLength": _}:
            return random.choice(("clip.mp4", "a/b/ü c.json"))
        case {"type": "string"}:
            return random.choice(TEXTS)
        case {"type": "integer"}:
            least, most = schema.get("minimum", -(2**53) + 1), schema.get("maximum", 2**31 - 1)
            return random.choice((least, most, random.randint(least, most)))
        case {"type": "number"}:
            return random.choice([number for number in FLOATS if _within(schema, number)])
        case {"type": "boolean"}:
            return random.random() < 0.5
        case {"type": "null"}:
            return None
    raise AssertionError(f"no value for {schema}")


def _within(schema: dict[str, Any], number: float) -> bool:
    lowest, highest = schema.get("minimum", -inf), schema.get("maximum", inf)
    above, below = schema.get("exclusiveMinimum", -inf), schema.get("exclusiveMaximum", inf)
    return bool(lowest <= number <= highest and above < number < below)


def any_event(kind: type[Event], seed: int) -> Event:
    """An event of this type: the first of the seed's that also keeps the rules a JSON Schema cannot say.

    Fields that contradict one another are many; with each try more of them stay as they are by default.
    """
    schema, random = kind.model_json_schema(), Random(seed)
    for attempt in range(200):
        left_out = 1 - 0.97**attempt
        with contextlib.suppress(ValidationError):
            return kind.model_validate(any_value(schema, schema.get("$defs", {}), random, left_out))
    raise AssertionError(f"no valid {kind.TYPE} in 200 tries")
