"""Base classes of all pydantic models that travel as JSON."""

from pydantic import BaseModel, ConfigDict


class Input(BaseModel):
    """A document that a client sends: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Output(BaseModel):
    """A document that the service sends: all fields are present, so that clients have no false optionals."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


def is_none(value: object) -> bool:
    """Return whether an optional field was not given; as `exclude_if` it keeps the field out of the JSON."""
    return value is None
