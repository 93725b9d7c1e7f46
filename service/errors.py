"""The exception that becomes an HTTP problem. The texts are in the table of `schemas.problem`."""

from collections.abc import Mapping

from schemas.problem import FieldProblem, Problem, ProblemKind
from state.uploads.checksum import ALGORITHMS

# The headers that every answer of a kind carries.
HEADERS: Mapping[ProblemKind, Mapping[str, str]] = {
    ProblemKind.UNAUTHORIZED: {"WWW-Authenticate": 'Bearer realm="eckart"'},
    ProblemKind.ENCODED_BODY: {"Accept-Encoding": "identity"},
    ProblemKind.NOT_ACCEPTABLE: {"Vary": "Accept"},
    ProblemKind.UNSUPPORTED_CHECKSUM: {"Tus-Checksum-Algorithm": ",".join(ALGORITHMS)},
    ProblemKind.TUS_VERSION: {"Tus-Version": "1.0.0"},
    ProblemKind.UPLOAD_LOCKED: {"Retry-After": "2"},
    ProblemKind.BUSY: {"Retry-After": "2"},
    ProblemKind.STORE_UNAVAILABLE: {"Retry-After": "5"},
    ProblemKind.FILES_LOCKED: {"Retry-After": "30"},
    ProblemKind.OVER_QUOTA: {"Retry-After": "30"},
    ProblemKind.NOT_READY: {"Retry-After": "5"},
}


class ProblemError(Exception):
    """Raised anywhere below a route; the handlers in `service.problems` answer with it."""

    def __init__(
        self,
        kind: ProblemKind,
        reason: str | None = None,
        *,
        values: Mapping[str, object] | None = None,
        fault: str | None = None,
        pointer: str | None = None,
        errors: tuple[FieldProblem, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Fill in the kind's detail: `values` by name, `reason` for a kind that covers many rules.

        `fault` ends the problem's type; `pointer` names the one field at fault.
        """
        self.kind = kind
        filled = {} if reason is None else {"reason": reason}
        self.detail = kind.text(**filled, **(values or {}))
        self.fault = fault
        self.errors = errors
        if pointer is not None:
            self.errors = (FieldProblem(pointer=pointer, detail=self.detail), *errors)
        self.headers = {**HEADERS.get(kind, {}), **(headers or {})}
        super().__init__(self.detail)

    def problem(self) -> Problem:
        """Build the RFC 9457 document."""
        return self.kind.problem(self.detail, fault=self.fault, errors=self.errors)
