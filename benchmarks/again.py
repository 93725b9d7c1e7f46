"""The cost of later jobs on one checkpoint of 1.1 billion parameters, through the service."""

import torch

from benchmarks.checkpoints import write_llama
from benchmarks.options import Options
from benchmarks.overhead import run_seconds
from benchmarks.standalone import running
from benchmarks.table import show
from eckart import Client

BLOCKS = 22
HEADS_WIDTH = 256  # of keys and values, as in grouped-query attention
RULES: dict[str, dict[str, float]] = {
    "first, ratio 0.5": {"ratio": 0.5},
    "ratio 0.3": {"ratio": 0.3},
    "ratio 0.6": {"ratio": 0.6},
    "energy 0.7": {"energy": 0.7},
    "budget 0.5": {"budget": 0.5},
}


def ask(options: Options) -> None:
    """Run one rule after another on the same stored checkpoint."""
    torch.set_num_threads(options.threads)
    blocks = max(1, round(BLOCKS * options.scale))
    index = write_llama(options.place / "llama", blocks=blocks, key_width=HEADS_WIDTH)
    rows = []
    first_s = 0.0
    with running(options.place, threads=options.threads) as service, Client(service.url) as client:
        checkpoint = client.upload(index)
        for name, rule in RULES.items():
            job = client.wait(client.submit(checkpoint, {"method": "svd", "rank": rule}).id)
            report = client.report(job.id)
            layers_s = sum(layer.seconds for layer in report.layers)
            first_s = first_s or layers_s
            rows.append(
                (
                    name,
                    f"{layers_s:.2f}",
                    f"{first_s / layers_s:.1f}",
                    f"{run_seconds(job):.2f}",
                    f"{report.totals.parameter_savings:.1%}",
                    f"{report.totals.relative_error:.4f}",
                )
            )
            print(rows[-1])
            client.delete(job.id)
    header = (
        "job",
        "seconds on its layers",
        "times as fast",
        "claim to finish, s",
        "saved",
        "relative error",
    )
    show(f"Jobs one after another on a Llama-shaped set of {blocks} blocks, bfloat16", header, rows)
