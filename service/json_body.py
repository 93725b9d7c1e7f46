"""JSON as the standard defines it: no repeated keys, no NaN, no half surrogates; then a model made of it."""

import json
import math
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from schemas.problem import ProblemKind
from service.errors import ProblemError
from service.problems import invalid_fields

M = TypeVar("M", bound=BaseModel)


def media_type(request: Request) -> str:
    """Return the Content-Type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Refuse a body whose Content-Type is not JSON."""
    media = media_type(request)
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        media_types = "application/json or multipart/form-data"
        raise ProblemError(ProblemKind.UNSUPPORTED_MEDIA_TYPE, values={"media_types": media_types})


def parse_json(text: bytes) -> Any:
    """Parse strictly; the problem says what is wrong and where."""
    try:
        value = json.loads(
            text.decode(), object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _invalid(f"The text is not UTF-8: see byte {error.start}.") from None
    except UnicodeEncodeError:
        raise _invalid("A string holds half of a surrogate pair; send the whole character.") from None
    except json.JSONDecodeError as error:
        raise _invalid(
            f"Invalid JSON at character {error.pos} (line {error.lineno}, column {error.colno}); "
            f"{_advice(error.doc[error.pos : error.pos + 1])}"
        ) from None
    except RecursionError:
        raise _invalid("The JSON is nested too deeply.") from None
    except ValueError:
        raise _invalid("The JSON holds an integer with thousands of digits.") from None
    return value


def parse_model(model: type[M], text: bytes, *, kind: ProblemKind, subject: str) -> M:
    """Parse strictly and validate without conversions: "0.5" and true are not numbers."""
    parse_json(text)
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise invalid_fields(kind, list(found), subject, model) from None


def _invalid(detail: str) -> ProblemError:
    return ProblemError(ProblemKind.INVALID_JSON, detail)


def _advice(found: str) -> str:
    if found == "'" or found.isalpha():
        # A shell takes double quotes off that stand in no single ones.
        return (
            "names and texts need double quotes, and in a shell the whole spec single ones around it, as in "
            "'spec={\"rank\": 64}'."
        )
    return "correct it and resend."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _invalid("An object holds the same key twice; keep one of them.")
    return made


def _constant(_token: str) -> NoReturn:
    raise _invalid("NaN and Infinity are not JSON; send a number.")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _invalid("A number is too large for a double; send a smaller one.")
    return value
