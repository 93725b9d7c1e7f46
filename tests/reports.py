"""Reports of any size, as the worker writes them, for what reads and shows them."""

from math import exp

HOSTILE = "</script><img src=x onerror=\"throw 'ran'\"><!--<script>&amp;'\u2028\U0001f600"
KINDS = ("attention.query", "attention.key", "attention.value", "mlp.up", "mlp.down")
DIGEST = "0" * 64


def made_layer(name, *, error=0.4, points=48, **fields):
    """Make a layer of 384 x 384 at rank 96, with a spectrum up to its rank."""
    indices = [round(at * 95 / (points - 1)) for at in range(points)]
    known = {
        "name": name,
        "tensor": f"{name}.weight",
        "shape": [384, 384],
        "transposed": False,
        "calibrated": False,
        "dtype": "F32",
        "outcome": "factored",
        "reason": None,
        "method": "svd",
        "selector": None,
        "rank": 96,
        "break_even_rank": 191,
        "parameters_before": 147456,
        "parameters_after": 73728,
        "bytes_before": 589824,
        "bytes_after": 294912,
        "relative_error": error,
        "optimal_error": error,
        "weighted_error": None,
        "optimal_weighted_error": None,
        "predicted_loss": None,
        "decomposition": "computed",
        "singular_values": [10.123456789 * exp(-index / 90) for index in indices],
        "singular_value_indices": indices,
        "columns": None,
        "rows": None,
        "seconds": 0.123456789,
    }
    return known | fields


def kept_layer(name, reason="no_saving", **fields):
    """Make a layer that stayed dense."""
    same = {
        "outcome": "kept",
        "reason": reason,
        "rank": None,
        "parameters_after": 147456,
        "bytes_after": 589824,
    }
    errors = {"relative_error": None, "optimal_error": None, "singular_values": None}
    return made_layer(name) | same | errors | {"singular_value_indices": None} | fields


def made_report(layers=(), *, totals=None, **members):
    """Make a report of these layers; `totals` and `members` replace single values."""
    layers = list(layers)
    before = sum(layer["bytes_before"] for layer in layers)
    after = sum(layer["bytes_after"] for layer in layers)
    factored = sum(layer["outcome"] == "factored" for layer in layers)
    sums = {
        "parameters_before": before // 4,
        "parameters_after": after // 4,
        "parameter_savings": 1 - after / before if before else 0.0,
        "compression_factor": before / after if after else 1.0,
        "bytes_before": before,
        "bytes_after": after,
        "layers_factored": factored,
        "layers_kept": len(layers) - factored,
        "relative_error": 0.4,
        "seconds": 1.5,
    }
    file = {"name": "model.safetensors", "size_bytes": before, "sha256": DIGEST}
    known = {
        "version": 1,
        "job_id": "J1",
        "created_at": "2026-01-02T03:04:05Z",
        "spec": {"method": "svd", "rank": {"ratio": 0.5}},
        "environment": {"device": "cpu", "torch": "2.13.0"},
        "warnings": [],
        "input": {"files": [file], "parameters": before // 4, "bytes": before},
        "calibration": None,
        "output": {"files": [file], "parameters": after // 4, "bytes": after},
        "totals": sums | (totals or {}),
        "not_selected": [],
        "layers": layers,
    }
    return known | members


def blocks(count, kinds=KINDS, **fields):
    """Make the layers of so many blocks."""
    names = [f"model.layers.{block}.{kind}" for block in range(count) for kind in kinds]
    return [made_layer(name, **fields) for name in names]


def hostile_report():
    """Make a report in which every text is hostile."""
    layers = [made_layer(f"{HOSTILE}.{block}.{HOSTILE}", method=HOSTILE) for block in range(2)]
    rule = {"rule": HOSTILE, "tensors": 1, "parameters": 9, "share": 0.9, "names": [HOSTILE]}
    return made_report(
        [*layers, kept_layer(f"{HOSTILE}.0.kept")],
        job_id=HOSTILE,
        warnings=[HOSTILE],
        environment={HOSTILE: HOSTILE},
        spec={"method": HOSTILE, "include": [HOSTILE], "calibration": HOSTILE},
        not_selected=[rule],
        how_to_load=HOSTILE,
        input={"files": [{"name": HOSTILE, "size_bytes": 1, "sha256": HOSTILE}], "parameters": 1, "bytes": 1},
    )
