"""Requests by the names of methods."""

import torch

from worker.lowrank import CURMethod, CXMethod, FactorRequest, PivotMethod, SVDMethod


def method_of(name, selector="qdeim", storage="three"):
    methods = {"svd": SVDMethod(), "pivot": PivotMethod()}
    return (methods | {"cx": CXMethod(selector), "cur": CURMethod(selector, storage)})[name]


def asked(
    method="svd", rank=4, max_rank=12, dtype=torch.float32, *, selector="qdeim", storage="three", **more
):
    made = method_of(method, selector, storage)
    return FactorRequest(method=made, rank=rank, max_rank=max_rank, dtype=dtype, **more)
