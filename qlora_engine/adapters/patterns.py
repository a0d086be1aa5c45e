"""Which value of a pattern such as ``{"vision": 4, "layers.0.*": 16}`` each layer gets. Free of torch."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from qlora_engine.errors import ModelRefused
from schemas.adapters import Modality

T = TypeVar("T")


def resolved(field: str, pattern: Mapping[str, T], layers: Mapping[str, Modality]) -> dict[str, T]:
    """The value of every one of `layers` that `pattern` has one for.

    Names go before modalities and longer names before shorter ones: JSON objects have no order of their own.

    Raises:
        ModelRefused: an entry meets no layer (code ``empty_pattern``).
    """
    found: dict[str, T] = {}
    used: set[str] = set()
    by_weight = sorted(pattern, key=lambda key: (key in layers.values(), -len(key), key))
    for layer, modality in layers.items():
        matching = [key for key in by_weight if key == modality or _ends_with(layer, key)]
        used.update(matching)
        if matching:
            found[layer] = pattern[matching[0]]
    unused = [key for key in by_weight if key not in used]
    if unused:
        raise ModelRefused(
            f"{field} names {unused[0]!r}, but no adapted layer's name ends so; take it out, or name one such"
            f" as {next(iter(layers), 'none')!r}",
            code="empty_pattern",
        )
    return found


def _ends_with(layer: str, pattern: str) -> bool:
    return fnmatchcase(layer, pattern) or fnmatchcase(layer, f"*.{pattern}")
