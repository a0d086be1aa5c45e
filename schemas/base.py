"""The base of every message: frozen, and unknown fields are an error rather than silently dropped."""

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A frozen value that crosses a process border."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")
