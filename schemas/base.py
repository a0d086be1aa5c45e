"""The base of every message: frozen, and unknown fields are an error rather than silently dropped."""

from collections.abc import Set
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

M = TypeVar("M", bound=BaseModel)

_set = object.__setattr__


class Message(BaseModel):
    """A frozen value that crosses a process border."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


def trusted(cls: type[M], values: dict[str, Any], fields: Set[str]) -> M:
    """An instance of values that were validated before: `model_construct` without its look at every field.

    `values` has all fields and belongs to the instance from here on; `fields` are those that somebody set.
    """
    made = cls.__new__(cls)
    _set(made, "__dict__", values)
    _set(made, "__pydantic_fields_set__", fields)
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made
