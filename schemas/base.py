"""What every model shares: frozen; strict about extras coming in, silent about defaults going out."""

from pydantic import BaseModel, ConfigDict


class Input(BaseModel):
    """Something a client says: unknown fields are refused with their path."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Output(BaseModel):
    """Something we say: every field is always there, so a generated client has no false optionals."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


def is_none(value: object) -> bool:
    """Say of an optional field that it was not given, so that it is not written either."""
    return value is None
