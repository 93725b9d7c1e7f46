"""Keep quantized weights dense whose shape, which some files hold as values, is not that of the plan."""

from dataclasses import replace

from schemas.format.encodings.base import SHAPE
from schemas.planning.budget import settle
from worker.context import TensorReaders
from worker.work_plan import WorkPlan


def keep_misshapen(work: WorkPlan, readers: TensorReaders) -> WorkPlan:
    """Read the shapes of packed weights; headers do not tell how many columns the last word holds."""
    tasks = tuple(
        replace(task, layer=settle(task.layer, "shape_differs"))
        if SHAPE in task.parts and tuple(readers.tensor(task.parts[SHAPE]).tolist()) != task.layer.shape
        else task
        for task in work.tasks
    )
    return replace(work, tasks=tasks)
