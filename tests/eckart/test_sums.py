"""Sums of products: exact, however the rows come."""

from __future__ import annotations

import pytest
import torch

from eckart.sums import WAITING_ROWS, Moments, SumStore


@pytest.mark.parametrize("sizes", [[1] * 7, [WAITING_ROWS - 1, 2, 1], [3 * WAITING_ROWS], [0, 5, 0]])
@pytest.mark.parametrize("inference", [False, True])
def test_few_rows_wait_and_none_is_lost(sizes, inference):
    parts = [torch.randn(size, 4, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]
    with torch.inference_mode(mode=inference):
        sums = Moments(4, SumStore())
        for rows in parts:
            sums.add(rows.clone())
            assert sum(part.shape[0] for part in sums._waiting) < WAITING_ROWS
    sums.settle()

    rows = torch.cat(parts).double()
    torch.testing.assert_close(sums.gram, rows.T @ rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    assert sums.count == sum(sizes)


def test_a_copy_goes_on_by_itself_from_all_rows_so_far():
    sums, store = Moments(3, SumStore()), SumStore()
    sums.add(torch.ones(2, 3))
    copy = sums.copied(store)
    sums.add(torch.ones(4, 3))
    copy.add(torch.zeros(1, 3))
    sums.settle()
    copy.settle()

    assert (sums.count, copy.count) == (6, 3)
    assert (float(sums.gram[0, 0]), float(copy.gram[0, 0])) == (6, 2)
    assert copy.mean.tolist() == pytest.approx([2 / 3] * 3)
