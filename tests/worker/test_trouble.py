"""worker/trouble.py: which trouble counts, and how long is waited."""

import errno

import pytest
import torch

from worker.trouble import layer_hung, trouble_of


@pytest.mark.parametrize(
    ("error", "kind", "pauses", "counts"),
    [
        (OSError(errno.ENOSPC, "full"), "out-of-space", 6, False),
        (OSError(errno.EDQUOT, "over the quota"), "out-of-space", 6, False),
        (OSError(errno.EFBIG, "too large"), "worker-trouble", 60, True),
        (OSError(errno.ESTALE, "the server of files was restarted"), "worker-trouble", 60, True),
        (OSError(errno.ENOMEM, "no memory"), "worker-trouble", 6, True),
        (MemoryError(), "worker-trouble", 6, True),
        (torch.OutOfMemoryError("the GPU is in use"), "worker-trouble", 6, True),
        (RuntimeError("a bug"), "worker-trouble", 1, True),
    ],
)
def test_each_class_of_trouble_has_its_pause(error, kind, pauses, counts):
    trouble = trouble_of(error)

    assert trouble.problem.type == f"urn:eckart:problem:{kind}"
    assert (trouble.pauses, trouble.counts) == (pauses, counts)


def test_a_layer_that_hung_is_named_with_its_limit():
    problem = layer_hung("encoder.0", 1800.4).problem

    assert problem.type == "urn:eckart:problem:layer-hung"
    assert "layer encoder.0 took longer than 1800 s" in problem.detail
