"""schemas/spec.py: a bad spec is refused with pointer and reason; a good one survives JSON."""

import json
from typing import Annotated

import pytest
from pydantic import AfterValidator, TypeAdapter, ValidationError

from schemas.problem import field_problems
from schemas.spec import CompressionSpec


@pytest.mark.parametrize(
    ("document", "pointer", "words"),
    [
        ({}, "/rank", "required"),
        ({"rank": 0}, "/rank", "greater than or equal to 1"),
        ({"rank": True}, "/rank", "a whole number"),
        ({"rank": 1.0}, "/rank", "a whole number"),
        ({"rank": "64"}, "/rank", "a whole number"),
        ({"rank": None}, "/rank", "a whole number"),
        ({"rank": 2**40}, "/rank", "less than or equal"),
        ({"rank": {}}, "/rank", "exactly one"),
        ({"rank": {"ratio": 0.5, "error": 0.1}}, "/rank", "exactly one"),
        ({"rank": {"auto": "vbmf", "error": 0.1}}, "/rank", "exactly one"),
        ({"rank": {"auto": "elbow"}}, "/rank/auto", "'hard_threshold' or 'vbmf'"),
        ({"rank": {"ratio": 0}}, "/rank/ratio", "greater than 0"),
        ({"rank": {"ratio": 1.5}}, "/rank/ratio", "less than or equal to 1"),
        ({"rank": {"ratio": float("nan")}}, "/rank/ratio", "finite"),
        ({"rank": {"energy": 0}}, "/rank/energy", "greater than 0"),
        ({"rank": {"error": 1}}, "/rank/error", "less than 1"),
        ({"rank": {"rato": 0.5}}, "/rank/rato", "unknown field"),
        ({"rank": {"budget": 0}}, "/rank/budget", "greater than 0"),
        ({"rank": {"budget": 1.01}}, "/rank/budget", "less than or equal to 1"),
        ({"rank": {"budget_bytes": 0}}, "/rank/budget_bytes", "greater than or equal to 1"),
        ({"rank": {"budget_bytes": 1e6}}, "/rank/budget_bytes", "valid integer"),
        ({"rank": {"budget": 0.5, "budget_bytes": 5}}, "/rank", "error, auto, budget and budget_bytes; 2"),
        ({"rank": {"budget": 0.5, "ratio": 0.5}}, "/rank", "exactly one"),
        ({"rank": {"budget_bytes": 5}, "layout": "dense"}, "/layout", "saves no bytes"),
        ({"rank": {"budget": 0.5}, "objective": "squared"}, "/objective", "absolute"),
        ({"rank": 4, "align": 0}, "/align", "greater than or equal to 1"),
        ({"rank": 4, "align": 8.0}, "/align", "valid integer"),
        ({"rank": 4, "min_rank": 0}, "/min_rank", "greater than or equal to 1"),
        ({"rank": 4, "calibration": "../grams"}, "/calibration", "match pattern"),
        ({"rank": 4, "calibration": ""}, "/calibration", "match pattern"),
        ({"rank": 4, "calibration": 7}, "/calibration", "valid string"),
        ({"rank": 4, "transposed": "h.*"}, "/transposed", "be a list"),
        ({"rank": 4, "transposed": [""]}, "/transposed/0", "at least 1 character"),
        ({"rank": 4, "transposed": ["x"] * 10_001}, "/transposed", "at most 10000"),
        ({"rank": 4, "method": "qr"}, "/method", "'cur', 'cx', 'pivot', 'int8'"),
        ({"rank": 4, "selector": "best"}, "/selector", "qdeim"),
        ({"rank": 4, "cur": {"storage": "one"}}, "/cur/storage", "three"),
        ({"rank": 4, "layout": "sparse"}, "/layout", "factored"),
        ({"rank": 4, "dtype": "int4"}, "/dtype", "keep"),
        ({"rank": 4, "layout": "adapter", "dtype": "int8"}, "/dtype", "an adapter holds floats"),
        ({"method": "int4", "group": 48}, "/group", "32, 64 or 128"),
        ({"method": "int4", "group": None}, "/group", "32, 64 or 128"),
        ({"method": "int4+svd"}, "/rank", "required"),
        ({"method": "int2"}, "/method", "'int8+svd'"),
        ({"method": "int4", "rank": {"budget": 0.5}}, "/method", "int4 saves bytes and no parameters"),
        ({"method": "int8+svd", "rank": {"budget": 0.5}}, "/method", "give budget_bytes instead of budget"),
        (
            {"method": "int4", "overrides": [{"match": "a*", "method": "svd"}]},
            "/overrides/0/rank",
            "a rank for 'a*'",
        ),
        (
            {"rank": {"budget": 0.5}, "overrides": [{"match": "a"}, {"match": "*", "method": "int8"}]},
            "/overrides/1/method",
            "int8 saves bytes and no parameters",
        ),
        ({"method": ["svd", "int8"]}, "/rank", "leaves the choice to a budget"),
        ({"method": ["svd", "int8"], "rank": 4}, "/rank", "leaves the choice to a budget"),
        ({"method": ["int8", "int4"]}, "/rank", "leaves the choice to a budget"),
        ({"method": [], "rank": 4}, "/method", "give at least 1 item, not 0"),
        ({"pairs": [], "rank": 4}, "/pairs", "give at least 1 item, not 0"),
        ({"method": ["svd", "svd"], "rank": {"budget": 0.5}}, "/method/1", "give svd once"),
        ({"method": ["svd", "no"], "rank": {"budget": 0.5}}, "/method/1", "'cur', 'cx'"),
        ({"method": ["svd", "cx"], "rank": {"budget": 0.5}}, "/method/1", "a list cannot have cx"),
        ({"method": ["svd", "int8"], "rank": {"budget": 0.5}}, "/method/1", "give budget_bytes instead"),
        (
            {"rank": {"budget": 0.5}, "overrides": [{"match": "*", "method": ["svd", "pivot"], "rank": 4}]},
            "/overrides/0/method",
            "leaves the choice to a budget",
        ),
        (
            {"rank": {"budget": 0.5}, "overrides": [{"match": "*", "method": ["svd", "cx"]}]},
            "/overrides/0/method/1",
            "a list cannot have cx",
        ),
        (
            {"method": ["svd", "pivot"], "rank": {"budget": 0.5}, "overrides": [{"match": "a", "rank": 4}]},
            "/overrides/0/rank",
            "give it one method too",
        ),
        ({"rank": 4, "pairs": "heads"}, "/pairs", "neurons"),
        ({"rank": 4, "pairs": [{"up": "a", "down": ""}]}, "/pairs/0/down", "at least 1"),
        ({"rank": 4, "objective": "best"}, "/objective", "'relative', 'absolute' or 'loss'"),
        ({"rank": 4, "bias": "drop"}, "/bias", "'correct' or 'keep'"),
        ({"rank": 4, "seed": -1}, "/seed", "greater than or equal to 0"),
        ({"rank": 4, "include": "*"}, "/include", "be a list"),
        ({"rank": 4, "include": [""]}, "/include/0", "at least 1 character"),
        ({"rank": 4, "overrides": [{"rank": 2}]}, "/overrides/0/match", "required"),
        ({"rank": 4, "overrides": [{"match": "*", "rank": {"ratio": 7}}]}, "/overrides/0/rank/ratio", "less"),
        ({"rank": 4, "overrides": [{"match": "*", "rank": {}}]}, "/overrides/0/rank", "error and auto; 0"),
        (
            {"rank": 4, "overrides": [{"match": "*", "rank": {"budget": 0.5}}]},
            "/overrides/0/rank/budget",
            "shared by all",
        ),
        (
            {"rank": 4, "overrides": [{"match": "*", "rank": {"budget_bytes": 5}}]},
            "/overrides/0/rank/budget_bytes",
            "shared by all",
        ),
        ({"rank": 4, "overrides": [{"match": "*", "weight": 0}]}, "/overrides/0/weight", "greater than 0"),
        ({"rank": 4, "overrides": [{"match": "*", "align": 0}]}, "/overrides/0/align", "greater than or eq"),
        ({"rank": 4, "overrides": [{"match": "*", "a/b~c": 7}]}, "/overrides/0/a~1b~0c", "unknown field"),
    ],
)
def test_a_bad_spec_is_refused_with_the_pointer_and_the_reason(document, pointer, words):
    with pytest.raises(ValidationError) as refusal:
        CompressionSpec.model_validate(document)

    (problem,) = field_problems(refusal.value.errors())
    assert problem.pointer == pointer
    assert words in problem.detail


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        ({"rank": {"rato": 0.5}}, "did you mean ratio?"),
        ({"rank": 4, "Include": ["*"]}, "did you mean include?"),
        ({"rank": 4, "overrides": [{"match": "*", "rnk": 7}]}, "did you mean rank?"),
        ({"rank": 4, "cur": {"store": "two"}}, "did you mean storage?"),
        ({"rank": {"ratio": 0.5}, "pairs": [{"up": "a", "down": "b", "gates": "c"}]}, "did you mean gate?"),
        ({"rank": {"zzz": 0.5}}, "known are auto, budget, budget_bytes, energy, error, ratio"),
        ({"rank": 4, "overrides": [{"match": "*", "rank": {"engery": 1}}]}, "did you mean energy?"),
    ],
)
def test_an_unknown_field_is_answered_with_the_one_that_was_meant(document, hint):
    with pytest.raises(ValidationError) as refusal:
        CompressionSpec.model_validate(document)
    details = [each.detail for each in field_problems(refusal.value.errors(), CompressionSpec)]
    assert [detail for detail in details if detail.startswith("unknown field; " + hint)], details


@pytest.mark.parametrize(
    "document",
    [
        {"rank": 64},
        {"rank": {"ratio": 0.5}},
        {"rank": {"energy": 1}},
        {"rank": {"error": 0.1}, "method": "cur", "cur": {"storage": "two"}, "selector": "cpqr"},
        {"rank": 8, "overrides": [{"match": "a.*", "rank": {"ratio": 0.1}, "method": "cx"}]},
        {"rank": {"budget": 0.5}, "objective": "absolute", "align": 8, "min_rank": 16},
        {"rank": {"budget_bytes": 10**9}, "overrides": [{"match": "a", "weight": 2.0, "align": 4}]},
        {"rank": 8, "calibration": "my-grams.2", "transposed": ["h.*", "*.c_attn"]},
    ],
)
def test_a_spec_survives_being_written_and_read(document):
    spec = CompressionSpec.model_validate(document)

    assert CompressionSpec.model_validate_json(spec.canonical()) == spec
    assert document.items() <= json.loads(spec.canonical()).items()


def test_specs_that_mean_the_same_are_written_the_same():
    short = CompressionSpec.model_validate({"rank": {"ratio": 0.5}})
    long = CompressionSpec.model_validate(
        {"seed": 0, "rank": {"ratio": 0.5}, "method": "svd", "include": ["*"]}
    )

    assert short.canonical() == long.canonical()


def test_calibration_options_that_are_not_given_are_not_in_the_document():
    assert CompressionSpec(rank=4).document().keys().isdisjoint({"calibration", "transposed"})


def test_options_without_effect_are_not_written():
    plain = CompressionSpec.model_validate({"rank": {"budget": 0.5}})
    said = CompressionSpec.model_validate({"rank": {"budget": 0.5}, "align": 1, "min_rank": 1})

    assert plain.canonical() == said.canonical()
    assert not plain.document().keys() & {"objective", "align", "min_rank"}
    assert plain.document()["rank"] == {"budget": 0.5}


@pytest.mark.parametrize(
    "document",
    [
        {"method": "int8"},
        {"method": "int4", "group": 128},
        {"method": "int3", "overrides": [{"match": "a*", "method": "svd", "rank": 4}]},
        {"method": "int4+svd", "rank": 8, "dtype": "int8", "overrides": [{"match": "a*", "method": "int8"}]},
        {"method": "int4+svd", "rank": {"budget_bytes": 100}},
    ],
)
def test_a_quantised_spec_needs_a_rank_only_for_factors(document):
    spec = CompressionSpec.model_validate(document)

    assert CompressionSpec.model_validate(spec.document()) == spec
    assert ("group" in spec.document()) == ("group" in document)


def test_a_message_of_ours_has_no_words_of_the_library_before_it():
    checked = TypeAdapter(Annotated[str, AfterValidator(int)])
    with pytest.raises(ValidationError) as refusal:
        checked.validate_python("x")

    (problem,) = field_problems(refusal.value.errors())
    assert problem.detail.startswith("invalid literal")
