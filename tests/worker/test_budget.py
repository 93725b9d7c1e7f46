"""worker/budget.py: the written files meet the budget, also when layers have to stay dense."""

from math import floor

import pytest
import torch

from schemas.problem import SpecError

SHARE = 0.5


def decaying(gaussian, rows, columns, rate, dtype=torch.float32):
    """Make a matrix whose singular values decay by a power law."""
    left, _ = torch.linalg.qr(gaussian(rows, min(rows, columns)).double())
    right, _ = torch.linalg.qr(gaussian(columns, min(rows, columns)).double())
    values = torch.arange(1, min(rows, columns) + 1, dtype=torch.float64) ** -rate
    return ((left * values) @ right.mT).to(dtype)


@pytest.fixture
def model(gaussian):
    """Layers with different spectra, which a budget should treat differently."""
    return {
        "slow.weight": decaying(gaussian, 96, 80, 0.1),
        "slow.bias": gaussian(96),
        "fast.weight": decaying(gaussian, 96, 80, 1.5),
        "wide.weight": decaying(gaussian, 40, 160, 0.6),
        "tall.weight": decaying(gaussian, 160, 40, 0.6),
        "embed.weight": gaussian(50, 16),
    }


def selected(report):
    return sum(layer.parameters_before for layer in report.layers)


def unspent(report, share=SHARE):
    """Return the number of parameters that a budget leaves unused."""
    return floor(share * selected(report)) - sum(layer.parameters_after for layer in report.layers)


def squared_errors(report):
    return sum((layer.relative_error or 0.0) ** 2 for layer in report.layers)


@pytest.mark.parametrize(
    "document", [{}, {"align": 8}, {"method": "cx"}, {"method": "cur"}, {"dtype": "float16"}]
)
def test_the_parameters_stay_within_a_step_of_the_budget_and_the_error_below_the_ratio(
    save, model, compress, document
):
    source = save(model)
    report = compress(source, rank={"budget": SHARE}, **document).report
    ratio = compress(source, rank={"ratio": SHARE}, **document).report

    for layer in report.layers:
        step = document.get("align", 1) * (sum(layer.shape) + 2 * layer.break_even_rank + 1)
        assert 0 <= unspent(report) < (step if layer.rank else layer.parameters_before)
        assert layer.reason in {None, "kept_by_budget"}
        assert layer.rank is None or layer.rank % document.get("align", 1) == 0
    ranks = {layer.name: layer.rank for layer in report.layers}
    assert ranks["fast"] < (ranks["slow"] or 81)
    assert squared_errors(report) < squared_errors(ratio)


@pytest.mark.parametrize("document", [{}, {"method": "cur"}, {"dtype": "bfloat16"}])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_bytes_of_a_file_are_within_two_hundredths_of_the_budget(save, model, compress, document, share):
    source = save(model, metadata={"format": "pt"})
    limit = int(share * source.stat().st_size)
    result = compress(source, rank={"budget_bytes": limit}, **document)
    size = (result.directory / "model.safetensors").stat().st_size

    assert size == result.report.output.bytes
    assert 0.98 * limit <= size <= limit or all(layer.reason for layer in result.report.layers)


def test_the_bytes_of_shards_and_their_index_are_within_two_hundredths_of_the_budget(
    save_sharded, gaussian, compress
):
    """Blocks like those of Llama: square and rectangular projections without biases, in bfloat16."""
    names = {"self_attn.q_proj": (128, 128), "self_attn.k_proj": (32, 128), "mlp.up_proj": (344, 128)}
    shards = [
        {
            f"model.layers.{block}.{name}.weight": decaying(
                gaussian, *shape, 0.3 + 0.1 * block, torch.bfloat16
            )
            for name, shape in names.items()
        }
        for block in range(4)
    ]
    shards[0]["model.embed_tokens.weight"] = gaussian(100, 128, dtype=torch.bfloat16)
    source = save_sharded(shards)
    limit = int(0.6 * sum(path.stat().st_size for path in source.iterdir()))
    result = compress(source, rank={"budget_bytes": limit})
    size = sum(path.stat().st_size for path in result.directory.iterdir() if path.name != "report.json")

    assert size == result.report.output.bytes
    assert 0.98 * limit <= size <= limit


def test_a_layer_that_can_only_be_dense_is_paid_from_the_budget(save, model, compress):
    model["slow.weight"][3, 5] = torch.nan
    report = compress(save(model), rank={"budget": SHARE}).report

    assert {layer.name: layer.reason for layer in report.layers}["slow"] == "not_finite"
    assert 0 <= unspent(report) < 300


def test_a_layer_whose_factors_turn_out_not_to_fit_is_paid_from_the_budget(save, model, compress):
    model["fast.weight"] *= 1e30
    report = compress(save(model), rank={"budget": SHARE}, dtype="float16").report

    assert {layer.name: layer.reason for layer in report.layers}["fast"] == "out_of_range"
    assert 0 <= unspent(report) < 300


@pytest.mark.parametrize(
    ("method", "rank"), [("svd", {"budget": SHARE}), (["svd", "pivot"], {"budget_bytes": 90_000})]
)
def test_singular_values_that_float64_cannot_hold_count_as_the_largest(save, model, compress, method, rank):
    model["slow.weight"] = model["slow.weight"].double() * 1e308 * 4
    report = compress(save(model), rank=rank, method=method, objective="absolute").report

    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["slow"] == "kept_by_budget"
    assert None in reasons.values()


def test_a_budget_that_no_longer_suffices_is_refused_with_the_layer(save, model, compress):
    model["slow.weight"][0, 0] = torch.inf

    with pytest.raises(SpecError, match=r'"slow", kept dense \(not_finite\)') as refusal:
        compress(save(model), rank={"budget": 0.2})
    assert refusal.value.pointer == "/rank/budget"


def test_a_budget_below_the_cheapest_ranks_is_refused_before_any_work(save, model, compress):
    with pytest.raises(SpecError, match="at least"):
        compress(save(model), rank={"budget": 0.001}, observe=lambda _: pytest.fail("work began"))


@pytest.mark.parametrize("rank", [3, {"ratio": 0.2}, {"energy": 0.6}, {"error": 0.5}])
def test_a_layer_with_a_rule_of_its_own_obeys_it_and_is_paid_from_the_budget(save, model, compress, rank):
    source = save(model)
    overrides = [{"match": "wide", "rank": rank}]
    report = compress(source, rank={"budget": SHARE}, overrides=overrides).report
    alone = compress(source, rank=rank, include=["wide"]).report

    ranks = {layer.name: layer.rank for layer in report.layers}
    assert ranks["wide"] == alone.layers[0].rank
    assert 0 <= unspent(report) < 300


def test_the_dense_layout_holds_the_factors_of_the_same_budget(save, model, compress):
    source = save(model)
    factored = compress(source, rank={"budget": SHARE}).report
    dense = compress(source, rank={"budget": SHARE}, layout="dense").report

    assert [layer.rank for layer in dense.layers] == [layer.rank for layer in factored.layers]


def test_the_same_budget_gives_the_same_bytes(save, model, compress):
    source = save(model)
    first, second = (compress(source, rank={"budget": SHARE}).report.output.files for _ in range(2))

    assert first == second
