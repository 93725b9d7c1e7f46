"""A job without a service, as most tests want it: on the CPU, and at half of the parameters if not told."""

import torch

from schemas.planning.references import References
from schemas.spec import CompressionSpec
from worker.local import compress_local


def compress(source, target, *, observe=lambda _progress: None, calibration=None, base=None, **spec):
    """Compress a checkpoint by a spec of these fields; return the report."""
    return compress_local(
        source,
        target,
        CompressionSpec.model_validate({"rank": {"ratio": 0.5}} | spec),
        references=References(calibration, base),
        device=torch.device("cpu"),
        observe=observe,
    )
