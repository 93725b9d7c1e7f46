"""What the service needs before it can take work and have it done."""

import tempfile

from schemas.problem import FieldProblem
from service import errors
from service.deps import Services
from state.errors import StoreUnavailable


def missing_parts(services: Services) -> tuple[FieldProblem, ...]:
    """Name each part that is missing, with what to do about it."""
    return (*_store(services), *_disk(services))


def _store(services: Services) -> list[FieldProblem]:
    try:
        services.queue.ping()
        alive = services.workers.alive()
    except StoreUnavailable as error:
        return [FieldProblem(pointer="/redis", detail=str(error))]
    return [] if alive else [FieldProblem(pointer="/workers", detail="No worker is alive; start one.")]


def _disk(services: Services) -> list[FieldProblem]:
    try:
        services.space.require(0)
        with tempfile.TemporaryFile(dir=services.settings.data_dir) as file:
            file.write(b"ready?")
    except errors.OutOfSpace:
        least = services.settings.min_free_bytes
        detail = f"Less than {least} bytes are free; make room, or set ECKART_MIN_FREE_BYTES to less."
        return [FieldProblem(pointer="/disk", detail=detail)]
    except OSError as error:
        return [
            FieldProblem(pointer="/disk", detail=f"The data directory is not writable: {error.strerror}.")
        ]
    return []
