"""Round a weight to integers of a few bits, each row or group of a row with a scale of its own."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class RoundedMatrix:
    """Integers and their scales: entry (i, j) is values[i, j] · scale[i, j // group].

    Attributes
    ----------
    values : Tensor [m, n], int8
        Of -(2^(b-1)) … 2^(b-1) - 1 for b bits.
    scale : Tensor [m, n / group]
        One for each group of neighbours in a row, or one for each row [m, 1]; the dtype of the result.
    """

    values: torch.Tensor
    scale: torch.Tensor

    def dense(self) -> torch.Tensor:
        """Return the matrix [m, n] in the dtype of the scales, as readers of the file compute it."""
        rows, columns = self.values.shape
        groups = self.scale.shape[1]
        grouped = self.values.view(rows, groups, columns // groups).to(self.scale.dtype)
        return (grouped * self.scale[:, :, None]).view(rows, columns)


def round_nearest(
    matrix: torch.Tensor, *, bits: int, scale_dtype: torch.dtype, group: int | None = None
) -> RoundedMatrix:
    """Round each entry to the nearest multiple of its scale, which takes the largest entry in.

    Parameters
    ----------
    matrix : Tensor [m, n]
        Real and floating.
    bits : int
        2 … 8.
    scale_dtype : torch.dtype
        Of the scales.
    group : int or None
        How many neighbours in a row share a scale, a divisor of n; None for a scale for each row.

    Returns
    -------
    RoundedMatrix
        Not finite where the matrix or its scales are not. Rounding -W gives the negative of rounding W.
    """
    rows, columns = matrix.shape
    width = group or columns
    grouped = matrix.reshape(rows, columns // width, width).to(
        torch.promote_types(matrix.dtype, torch.float32)
    )
    levels = (1 << (bits - 1)) - 1
    scale = (grouped.abs().amax(2) / levels).to(scale_dtype)  # [m, groups]
    divisor = scale.to(grouped.dtype)[:, :, None]
    values = (grouped / divisor.where(divisor > 0, 1)).round_().clamp_(-levels, levels)
    return RoundedMatrix(values.nan_to_num_(0).view(rows, columns).to(torch.int8), scale)
