"""Query parameters that an address does not have are refused: one that is misspelled would change nothing."""

from fastapi import Depends
from fastapi.dependencies.models import Dependant
from starlette.requests import Request

from schemas.nearest import did_you_mean
from schemas.problem import FieldProblem, ProblemKind
from service.errors import ProblemError

MOST_NAMED = 10


async def _check_names(request: Request) -> None:
    if not request.scope["query_string"]:
        return
    known = _known(request.scope["route"].dependant)
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    if unknown:
        found = tuple(_unknown(name, known) for name in unknown[:MOST_NAMED])
        reason = "This address has no such query parameter. Correct what `errors` lists, or leave it out."
        raise ProblemError(ProblemKind.INVALID_REQUEST, reason, errors=found)


KnownQuery = Depends(_check_names)


def _known(dependant: Dependant) -> set[str]:
    own = {field.alias for field in dependant.query_params}
    return own.union(*(_known(each) for each in dependant.dependencies))


def _unknown(name: str, known: set[str]) -> FieldProblem:
    hint = did_you_mean(name, known) if known else "; there are none here"
    return FieldProblem(pointer=f"/query/{name[:100]}", detail=f"unknown parameter{hint}")
