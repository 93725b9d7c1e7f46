"""Cut the neurons of MLPs: the weights of a pair are computed together, and stored one by one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from schemas.planning.pairs import pairs_of
from schemas.report import KeptReason
from worker.context import JobContext
from worker.layer import LayerOutcome, kept_outcome
from worker.lowrank import Kept
from worker.lowrank.error import Residual, measure
from worker.lowrank.neurons import NarrowedWeight, narrow
from worker.lowrank.scale import finite_exponent
from worker.work_plan import LayerTask


@dataclass(frozen=True, slots=True)
class Member:
    """A weight of a pair [outputs, inputs], and its bias [outputs], if it is stored anew."""

    task: LayerTask
    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def is_finite(self) -> bool:
        tensors = (self.weight,) if self.bias is None else (self.weight, self.bias)
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def cut_pairs(tasks: Sequence[LayerTask], context: JobContext) -> dict[int, LayerOutcome]:
    """Cut the neurons of all pairs that the tasks are the members of; return the outcomes by number.

    A pair is large, so one follows the other on all threads. If an attempt is killed between the members of a
    pair, the next one computes all of them again, to the same bytes.
    """
    by_name = {task.layer.name: task for task in tasks}
    outcomes: dict[int, LayerOutcome] = {}
    for layers in pairs_of(task.layer for task in tasks).values():
        members = [by_name[layer.name] for layer in layers]
        context.progress.begin(members[-1])
        for member, outcome, tensors in _cut(members, context):
            context.spool.put(member.number, outcome.model_dump_json(), tensors)
            context.progress.end(member)
            outcomes[member.number] = outcome
    return outcomes


Cut = tuple[LayerTask, LayerOutcome, tuple[torch.Tensor, ...]]


def _cut(tasks: Sequence[LayerTask], context: JobContext) -> list[Cut]:
    """Return what becomes of each member, the one behind the neurons last."""
    begun = time.perf_counter()
    *before, down = (_read(task, context) for task in tasks)
    statistics = context.readers.statistics(down.task)
    assert statistics is not None
    count = down.task.layer.rank
    assert isinstance(count, int)
    if not all(member.is_finite for member in (*before, down)):
        return _kept(tasks, "not_finite")
    result = narrow(down.weight, count, statistics.to(context.device))
    if isinstance(result, Kept):
        return _kept(tasks, result.reason.value)
    bias = None if down.bias is None else _shifted(down.bias, result)
    if bias is not None and not bool(torch.isfinite(bias).all()):
        return _kept(tasks, "out_of_range")
    cut = [_rows(member, result) for member in before]
    # The time is that of the weight that is fitted.
    return [*cut, _columns(down.task, result, bias, time.perf_counter() - begun)]


def _read(task: LayerTask, context: JobContext) -> Member:
    bias = context.readers.bias(task)
    weight = context.readers.weight(task).to(context.device)
    return Member(task, weight, None if bias is None else bias.to(context.device))


def _kept(tasks: Sequence[LayerTask], reason: KeptReason) -> list[Cut]:
    return [(task, kept_outcome(task, reason), ()) for task in tasks]


def _rows(member: Member, result: NarrowedWeight) -> Cut:
    """Keep the rows of the neurons, and their entries of the bias, verbatim."""
    weight = member.weight
    whole = torch.zeros_like(weight)
    whole[list(result.neurons)] = weight[list(result.neurons)]
    error = measure(weight, (whole,), finite_exponent(weight))
    outcome = _outcome(member.task, result, error, seconds=0.0)
    outcome = _with(outcome, rows=result.neurons)
    bias = () if member.bias is None else (member.bias[list(result.neurons)].cpu(),)
    return member.task, outcome, (_as_stored(weight[list(result.neurons)], member.task), *bias)


def _shifted(bias: torch.Tensor, result: NarrowedWeight) -> torch.Tensor:
    """Return the bias [m], in its dtype, that makes up for the mean of what is lost."""
    shift = 0.0 if result.shift is None else result.shift
    return (bias.to(torch.float64) + shift).to(bias.dtype)


def _columns(task: LayerTask, result: NarrowedWeight, bias: torch.Tensor | None, seconds: float) -> Cut:
    outputs = result.output_error
    outcome = _outcome(task, result, result.weight_error, seconds=seconds)
    outcome = _with(
        outcome,
        columns=result.neurons,
        weighted_error=outputs.relative,
        predicted_loss=result.predicted_loss,
        bias_corrected=result.shift is not None,
    ).model_copy(
        update={"squared_output_error": outputs.squared_error, "squared_output_norm": outputs.squared_norm}
    )
    biases = () if bias is None else (bias.cpu(),)
    return task, outcome, (_as_stored(result.weight, task), *biases)


def _outcome(task: LayerTask, result: NarrowedWeight, error: Residual, *, seconds: float) -> LayerOutcome:
    layer, count = task.layer, len(result.neurons)
    outcome = kept_outcome(task, None)
    report = outcome.report.model_copy(
        update={
            "outcome": "factored",
            "rank": count,
            "shape_after": layer.stored_tensors(count)[0].shape,
            "parameters_after": layer.parameters_after(count),
            "bytes_after": layer.bytes_after(count),
            "relative_error": error.relative,
            "seconds": seconds,
        }
    )
    update = {"squared_error": error.squared_error, "squared_norm": error.squared_norm}
    return outcome.model_copy(update={"report": report, **update})


def _with(outcome: LayerOutcome, **fields: object) -> LayerOutcome:
    return outcome.model_copy(update={"report": outcome.report.model_copy(update=fields)})


def _as_stored(weight: torch.Tensor, task: LayerTask) -> torch.Tensor:
    return (weight.mT if task.layer.transposed else weight).contiguous().cpu()
