"""Lower the rank of one pair of an adapter."""

import torch

from worker.forms import FormInputs
from worker.lowrank import Factored, Kept, SVDMethod, ThinProduct, resize


def resize_lora(
    inputs: FormInputs, product: ThinProduct, scale: torch.Tensor | None
) -> tuple[Factored | Kept, tuple[torch.Tensor, ...]]:
    """Return the result, and the tensors of the pair as `LayerPlan.stored_tensors` has them.

    The `scale` of a file counts by its ratio to the rank, which stays what it was.
    """
    result = resize(product, inputs.request(SVDMethod()), inputs.dtype, cache=inputs.cached)
    if isinstance(result, Kept):
        return result, ()
    tensors = list(result.factors)
    if scale is not None:
        ratio = result.rank / inputs.layer.lora_rank
        tensors.append((scale.to(torch.float64) * ratio).to(torch.float32))
    stored = inputs.layer.stored_tensors(result.rank)
    return result, tuple(
        tensor.reshape(planned.shape) for tensor, planned in zip(tensors, stored, strict=True)
    )
