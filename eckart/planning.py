"""Planning what is on disk, without a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eckart.errors import InputError
from schemas.format.files import CheckpointFiles
from schemas.format.index import parse_index
from schemas.format.metadata import factored_names
from schemas.planning.budget import check_budget
from schemas.planning.calibration import CalibrationError
from schemas.planning.documents import plan_document
from schemas.planning.planner import make_plan
from schemas.problem import FieldProblem, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eckart.source import Source
    from schemas.plan import PlanDocument
    from schemas.planning.calibration import GramInfo
    from schemas.spec import CompressionSpec


def plan_source(
    source: Source, spec: CompressionSpec, grams: Sequence[GramInfo] | None = None
) -> PlanDocument:
    """Say what would be done; ranks that need spectra are bounds, since nothing is computed.

    `grams` is what the calibration holds, if there is one.
    """
    factored = factored_names(header.metadata for header in source.headers.values())
    index = parse_index(source.index.read_bytes()) if source.index else None
    try:
        plan = make_plan(source.tensors, spec, factored=factored, grams=grams)
        check_budget(plan, spec, CheckpointFiles(source.headers, index))
    except CalibrationError as error:
        raise InputError(error.detail) from error
    except SpecError as error:
        field = FieldProblem(pointer=error.pointer, detail=error.detail)
        raise InputError(f"{source.name} cannot meet the spec", errors=(field,)) from error
    return plan_document(source.name, source.tensors, plan)
