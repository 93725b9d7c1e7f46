"""Base classes of all models that are JSON: what is asked is read strictly, what is kept is not."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

# In the context of an error: the path of the field at fault, in the model of the one that was checked.
PLACE = "place"


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


class PersistedModel(BaseModel):
    """A document that outlives a release: unknown fields of a newer release are ignored, at every depth."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def fault_at(place: Sequence[int | str], kind: str, message: str, **values: object) -> PydanticCustomError:
    """Return an error of another field than the one that is being checked, given by its path beside it."""
    return PydanticCustomError(kind, message, {**values, PLACE: list(place)})


def is_none(value: object) -> bool:
    """Return whether an optional field was not given; as `exclude_if` it keeps the field out of the JSON."""
    return value is None
