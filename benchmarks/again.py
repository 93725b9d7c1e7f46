"""The cost of later jobs on one checkpoint of 1.1 billion parameters, through the service."""

from collections.abc import Mapping

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
HEADER = (
    "job",
    "seconds on its layers",
    "times as fast",
    "claim to finish, s",
    "times as fast",
    "saved",
    "relative error",
)
# Shares of the bytes of the selected weights that a list of methods gets.
METHODS = ["svd", "int8", "int4", "int3", "int8+svd", "int4+svd", "int3+svd"]
SHARES = {"first of a list, 0.3 of the bytes": 0.3, "the same again": 0.3, "0.25 of the bytes": 0.25}


def ask(options: Options) -> None:
    """Run one rule after another on the same stored checkpoint, and then one list of methods."""
    torch.set_num_threads(options.threads)
    blocks = max(1, round(BLOCKS * options.scale))
    index = write_llama(options.place / "llama", blocks=blocks, key_width=HEADS_WIDTH)
    nbytes = sum(path.stat().st_size for path in index.parent.glob("*.safetensors"))
    alone = {name: {"method": "svd", "rank": rule} for name, rule in RULES.items()}
    with running(options.place, threads=options.threads) as service, Client(service.url) as client:
        checkpoint = client.upload(index)
        selected = sum(layer.bytes_before for layer in client.plan(checkpoint, {"rank": 1}).layers)
        mixed = {
            name: {
                "method": METHODS,
                "dtype": "int8",
                "rank": {"budget_bytes": nbytes - int((1 - share) * selected)},
            }
            for name, share in SHARES.items()
        }
        for title, specs in ("Jobs", alone), ("Jobs with a list of methods", mixed):
            rows = _run_in_turn(client, checkpoint, specs)
            show(f"{title}, one after another, on a Llama-shaped set of {blocks} blocks", HEADER, rows)


def _run_in_turn(
    client: Client, checkpoint: str, specs: Mapping[str, Mapping[str, object]]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    first: tuple[float, float] | None = None
    for name, spec in specs.items():
        job = client.wait(client.submit(checkpoint, spec).id)
        report = client.report(job.id)
        layers_s, whole_s = sum(layer.seconds for layer in report.layers), run_seconds(job)
        first = first or (layers_s, whole_s)
        rows.append(
            (
                name,
                f"{layers_s:.2f}",
                f"{first[0] / layers_s:.1f}",
                f"{whole_s:.2f}",
                f"{first[1] / whole_s:.1f}",
                f"{report.totals.parameter_savings:.1%}",
                f"{report.totals.relative_error:.4f}",
            )
        )
        print(rows[-1])
        client.delete(job.id)
    return rows
