"""worker.lowrank.lapack: eigenpairs and QR, by either library."""

import numpy as np
import pytest
import torch

from tests.worker.lowrank.matrices import gaussian, spectrum, with_spectrum
from worker.lowrank import lapack
from worker.lowrank.lapack import NotConvergedError, converging, leading_eigenpairs, thin_qr, triangle


@pytest.mark.parametrize("largest", [10, 10_000], ids=["by torch", "by scipy"])
@pytest.mark.parametrize(("count", "whole"), [(5, False), (5, True), (60, False), (60, True)])
def test_both_libraries_find_the_same_pairs(monkeypatch, largest, count, whole):
    monkeypatch.setattr(lapack, "LARGEST_EIGH", largest)
    root = with_spectrum(70, 60, spectrum("slow", 60))
    matrix = torch.from_numpy(root.T @ root)
    threads = torch.get_num_threads()
    values, rows = leading_eigenpairs(matrix, count, all_values=whole)

    expected = np.linalg.eigvalsh(matrix.numpy())[::-1]
    np.testing.assert_allclose(values, expected[: 60 if whole else count], rtol=1e-10)
    torch.testing.assert_close(rows @ matrix, values[:count, None] * rows, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)) > 0).all())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("shape", [(9, 1), (200, 50), (60, 60)], ids=str)
def test_the_triangle_of_a_qr_is_that_of_the_whole(shape):
    tall = gaussian(*shape)
    q, r = thin_qr(tall)

    assert triangle(tall).equal(r)
    torch.testing.assert_close(q @ r, tall)
    assert r.equal(r.triu())


@pytest.mark.parametrize(
    ("device", "raised", "seen"),
    [
        ("cpu", np.linalg.LinAlgError, NotConvergedError),
        ("cpu", torch.linalg.LinAlgError, NotConvergedError),
        ("cpu", RuntimeError, RuntimeError),
        ("cuda", torch.linalg.LinAlgError, NotConvergedError),
        ("cuda", RuntimeError, NotConvergedError),
        ("cuda", torch.OutOfMemoryError, torch.OutOfMemoryError),
    ],
)
def test_only_what_may_be_a_lack_of_convergence_leads_to_another_solver(device, raised, seen):
    with pytest.raises(seen) as found, converging(torch.device(device)):
        raise raised

    assert found.type is seen
