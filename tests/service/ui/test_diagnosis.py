"""What a report means, in words: each rule speaks from its threshold on, and the docs have them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.reports import HOSTILE, KINDS, blocks, kept_layer, made_layer, made_report
from tests.service.ui.conftest import quiet_tab, with_modules

DOCS = Path(__file__).parents[3] / "docs" / "4-format.md"
SAY = """async (report) => {
  const { diagnose } = await import("/diagnosis.js");
  return diagnose(report).map(({name, text}) => [name, text]);
}"""
RULES = """async () => {
  const { DIAGNOSES } = await import("/diagnosis.js");
  return DIAGNOSES.map(({name, threshold}) => [name, threshold]);
}"""


@pytest.fixture(scope="module")
def modules(browser):
    """One tab for all: the rules keep nothing."""
    with quiet_tab(browser) as tab:
        yield with_modules(tab)


def value_loses(error):
    """Make a model whose attention values have this error, and a spectrum that falls slowly."""
    flat = {"error": error, "singular_values": [1.0] * 48}
    others = [kind for kind in KINDS if kind != "attention.value"]
    return [*blocks(6, others, error=0.4), *blocks(6, ["attention.value"], **flat)]


def rows(error, **fields):
    return made_report(blocks(2, **fields), totals={"relative_error": error})


def left_out(share):
    rule = {"rule": "exclude embed*", "tensors": 1, "parameters": 9, "share": share, "names": ["embed"]}
    return made_report(blocks(2), not_selected=[rule])


def outlier(error):
    return made_report([*blocks(4), made_layer("model.head.lm", error=error)])


def ends(error):
    last = [layer | {"relative_error": error} for layer in blocks(4)[-5:]]
    return made_report([*blocks(4)[:-5], *last])


def flat(share):
    """Make layers that have this share of their energy, all in equal singular values, up to rank 96."""
    error = (1 - share) ** 0.5
    return made_report(blocks(2, error=error, singular_values=[1.0] * 48), totals={"relative_error": 0.3})


def dense(count):
    return made_report([*blocks(2), *[kept_layer(f"model.layers.{at}.up") for at in range(count)]])


BY_INTEGERS = "int8 or int4 may lose less at the same size."
LOSES_MOST = (
    r"attention\.value lose most: an error of 0\.8, and 0\.506 over all layers\. "
    r"A budget of the same size would give them a rank of about 1[0-9]{2} in place of 96\."
)
# A rule, a report below its threshold, one at or above it, and what is said of that.
CASES = [
    ("not_smaller", rows(0.4, bytes_after=580000), rows(0.4, bytes_after=585000), r"only 0\.82 % smaller"),
    ("not_smaller", rows(0.4), rows(0.4, bytes_after=600000), "larger than the input"),
    ("nearly_lossless", rows(0.021), rows(0.02), r"the error over all layers is 0\.02\."),
    ("large_error", rows(0.49), rows(0.5), r"0\.5: of the weights' energy, 25 % is lost\. .* or calibrate"),
    (
        "kind_loses_most",
        made_report(value_loses(0.5)),
        made_report(value_loses(0.8)),
        LOSES_MOST,
    ),
    ("depth", ends(0.45), ends(0.52), r"The last quarter .* than the first: 0\.52 and 0\.4\."),
    (
        "outliers",
        outlier(0.79),
        outlier(0.81),
        r"1 layer has more than 2 times the usual error: model\.head\.lm\.",
    ),
    (
        "far_from_optimum",
        made_report(blocks(2), totals={"error_over_optimal": 1.19}),
        made_report(blocks(2), totals={"error_over_optimal": 1.2}),
        r"1\.2 times the best possible ones",
    ),
    ("flat_spectra", flat(0.6), flat(0.3), rf"needs about [78]\d % of its rank\. {BY_INTEGERS}"),
    (
        "kept_dense",
        dense(3),
        dense(4),
        r"4 of 14 selected weights stayed dense, with 29 % .* would save no parameters",
    ),
    ("left_out", left_out(0.49), left_out(0.5), r"50 % .* most by “exclude embed\*”: .* the other 50 %"),
    (
        "not_finite",
        made_report([*blocks(2), kept_layer(HOSTILE)]),
        made_report([*blocks(2), kept_layer(HOSTILE, "not_finite")]),
        rf"1 weight has NaN or infinity: {re.escape(HOSTILE)}\.",
    ),
]


@pytest.mark.parametrize(
    ("rule", "below", "above", "said"), CASES, ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_rule_speaks_from_its_threshold_on(modules, rule, below, above, said):
    before, after = (dict(modules.evaluate(SAY, report)) for report in (below, above))

    assert rule not in before
    assert re.search(said, after[rule]), after


def test_every_rule_has_a_case(modules):
    assert {name for name, _ in modules.evaluate(RULES)} == {case[0] for case in CASES}


def test_a_report_without_a_fault_is_told_so(modules):
    assert [name for name, _ in modules.evaluate(SAY, made_report(blocks(2)))] == ["nothing"]


def test_a_budget_is_not_proposed_where_one_was_spent(modules):
    report = made_report(value_loses(0.8), spec={"method": "svd", "rank": {"budget": 0.5}})

    assert "budget" not in dict(modules.evaluate(SAY, report))["kind_loses_most"]


def test_the_documentation_has_each_rule_with_its_threshold(modules):
    table = re.findall(r"^\| `([a-z_]+)` \| ([\d.]+) \|", DOCS.read_text(), re.MULTILINE)

    assert [(name, float(threshold)) for name, threshold in table] == [
        tuple(rule) for rule in modules.evaluate(RULES)
    ]
