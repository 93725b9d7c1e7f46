"""The mean error of a layer's outputs, which its bias can make up for."""

from collections.abc import Sequence

import torch

from worker.lowrank.error import row_blocks


def mean_error(weight: torch.Tensor, factors: Sequence[torch.Tensor], mean: torch.Tensor) -> torch.Tensor:
    """Return (W - Ŵ)μ [m] in float64: what the bias must gain so that outputs keep their mean.

    With it, min tr((W - Ŵ)G(W - Ŵ)ᵀ) over Ŵ and the bias is that over Ŵ alone with G - Nμμᵀ in place of G.

    Parameters
    ----------
    weight : Tensor [m, n]
        W; any real floating dtype.
    factors : sequence of Tensor
        As stored, input side first: [k, n], maybe [k, k], [m, k]; or Ŵ [m, n] alone.
    mean : Tensor [n]
        μ, the mean of the inputs.
    """
    image = mean.to(weight.device, torch.float64)  # [n]
    wide = torch.cat([weight[rows].to(torch.float64) @ image for rows in row_blocks(*weight.shape)])  # [m]
    for factor in factors:
        image = factor.to(torch.float64) @ image  # [k], at last [m]
    return wide - image
