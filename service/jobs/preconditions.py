"""`If-Match` of a deletion, which is checked before anything is deleted."""

from schemas.problem import ProblemKind
from service.dependencies import Services
from service.errors import ProblemError
from service.headers import if_match_holds
from service.jobs.status import job_etag


def check_job_matches(services: Services, job_id: str, root_path: str, if_match: str | None) -> None:
    """Refuse a deletion whose If-Match does not name the job as it is shown now."""
    if if_match is None:
        return
    etag = job_etag(services.jobs.view(job_id), root_path)
    if not if_match_holds(etag, if_match):
        found = "the job has changed, and has the ETag of this answer"
        raise _failed_precondition(found, {"ETag": etag})


def check_checkpoint_matches(services: Services, checkpoint_id: str, if_match: str | None) -> None:
    """Refuse a deletion whose If-Match names an ETag: a checkpoint has none, though each of its files has."""
    if if_match is None or if_match_holds(None, if_match):
        return
    services.checkpoints.get(checkpoint_id)
    raise _failed_precondition("a checkpoint as a whole has no ETag, so only `*` does", {})


def _failed_precondition(found: str, headers: dict[str, str]) -> ProblemError:
    values = {"header": "If-Match", "found": found}
    return ProblemError(ProblemKind.PRECONDITION_FAILED, values=values, headers=headers)
