"""Base classes of all models that travel as JSON: what is asked is read strictly, what is kept is not."""

from pydantic import BaseModel, ConfigDict


class Input(BaseModel):
    """A document that a client sends: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Output(BaseModel):
    """A document that the service sends: all fields are present, so that clients have no false optionals.

    Many are kept too, and read again by other releases: unknown fields are ignored, at every depth.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        ser_json_inf_nan="null",
        json_schema_extra={"additionalProperties": False},
    )


def is_none(value: object) -> bool:
    """Return whether an optional field was not given; as `exclude_if` it keeps the field out of the JSON."""
    return value is None
