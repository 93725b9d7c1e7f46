"""Reports and plans as text."""

from __future__ import annotations

from textwrap import dedent

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eckart.plain_text import WIDTH
from eckart.spec import schema
from eckart.table import plan_table, report_table
from eckart.types import PlanDocument, Report
from schemas.format.tensor import TensorInfo
from schemas.planning.documents import plan_document
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec

BLOCKS = [f"encoder.layer.{number}" for number in range(6)]


@pytest.fixture
def table(report):
    """Show a report of these layers."""

    def show(*layers, **fields):
        return report_table(Report.model_validate(report(layers, **fields)))

    return show


def planned(rank, *shapes):
    """Show the plan of a checkpoint of these weights."""
    tensors = [
        TensorInfo(f"{name}.weight", "F32", shape, 0, 4 * shape[0] * shape[1])
        for name, shape in dict(shapes).items()
    ]
    spec = CompressionSpec.model_validate({"rank": rank})
    document = plan_document("my-model", make_plan(tensors, spec))
    return plan_table(PlanDocument.model_validate(document.model_dump()))


def test_a_report_reads_like_this(table, layer):
    layers = [
        layer(
            f"{block}.attention.self.{part}", error=0.25 + number / 100, best=0.2 + number / 100, method="cx"
        )
        for number, block in enumerate(BLOCKS)
        for part in ("query", "key")
    ]
    layers += [
        layer(f"{block}.output.dense", shape=(384, 1536), rank=153 + number)
        for number, block in enumerate(BLOCKS)
    ]
    layers += [layer("pooler.dense", error=3.25e-7, best=None)]
    layers += [layer(f"head.{number}", shape=(2, 384), reason="no_saving") for number in range(2)]
    layers += [layer("bad", reason="not_finite")]

    text = table(*layers, warnings=["include: the pattern 'x*' matches no layer"])

    assert text == dedent(
        """\
        job J1: svd at ratio 0.5, on cpu, 2026-01-02T03:04:05Z

        layers                                n     shape  method      rank  saved     error   best
        ------------------------------------  -  --------  ------  --------  -----  --------  -----
        encoder.layer.*.attention.self.query  6   384x384      cx        96  50.0%     0.300  0.250
        encoder.layer.*.attention.self.key    6   384x384      cx        96  50.0%     0.300  0.250
        encoder.layer.*.output.dense          6  384x1536     svd  153..158  49.4%     0.250  0.250
        pooler.dense                          1   384x384     svd        96  50.0%  3.25e-07      -

        kept dense, no_saving: At that rank, the factors would save no parameters, or no bytes of a
          quantized weight.
          head.* (2, 2x384)
        kept dense, not_finite: The weight, or its difference to the base, contains NaN or infinity.
          bad (1, 384x384)

        whole checkpoint      before       after  saved  factor
        ----------------  ----------  ----------  -----  ------
        parameters         5,605,864   2,899,816  48.3%    1.93
        bytes             22,423,456  11,599,264  48.3%    1.93

        19 factored with a relative error of 0.25, 3 kept dense, in 4.2 s
        error, best: of the row's worst layer, and the best possible at its rank

        warning: include: the pattern 'x*' matches no layer
        """
    )


def test_a_calibrated_report_shows_both_errors_of_the_layer_whose_outputs_are_worst(table, layer, report):
    layers = [
        layer("h.0.up", error=0.5, weighted=0.125),
        layer("h.1.up", error=0.375, weighted=0.25),
        layer("head", error=0.0625, best=0.0625),
    ]
    totals = report(layers)["totals"] | {"weighted_error": 0.2}

    text = table(*layers, totals=totals)

    lines = [line.split() for line in text.splitlines()]
    assert ["layers", "n", "shape", "method", "rank", "saved", "error", "outputs", "best"] in lines
    assert next(line for line in lines if line[:1] == ["h.*.up"])[-3:] == ["0.375", "0.250", "0.250"]
    assert next(line for line in lines if line[:1] == ["head"])[-3:] == ["0.0625", "-", "0.0625"]
    assert "of all outputs 0.2" in " ".join(text.split())


def test_a_report_with_losses_shows_them_summed_over_each_row_and_methods_without_ranks(table, layer, report):
    layers = [
        layer(f"a.{number}", method="int8", rank=0, weighted=0.01) | {"predicted_loss": 0.25}
        for number in range(2)
    ]
    layers += [layer("b", method="int4+svd", rank=8, weighted=0.2) | {"predicted_loss": 1.5}]
    totals = report(layers)["totals"] | {"weighted_error": 0.02, "predicted_loss": 2.0}
    spec = {"method": ["int8", "int4+svd"], "rank": {"budget_bytes": 9}}

    lines = table(*layers, totals=totals, spec=spec).splitlines()

    assert "int8 or int4+svd at budget_bytes 9" in lines[0]
    assert lines[2].split()[-3:] == ["error", "outputs", "loss"]
    assert [line.split()[3:5] + line.split()[-1:] for line in lines[4:6]] == [
        ["int8", "-", "0.500"],
        ["int4+svd", "8", "1.50"],
    ]
    assert "in total 2" in " ".join(lines)


def test_a_report_says_what_a_method_loses_to_the_svd(table, layer, report):
    layers = [layer("head", error=0.5, best=0.4, method="cx")]
    known = report(layers)["totals"] | {"error_over_optimal": 1.25}

    text = " ".join(table(*layers, totals=known).split())
    assert "over all layers 1.25 times the best possible error" in text
    assert "times the best possible" not in table(*layers)


def test_a_plan_reads_like_this():
    text = planned({"energy": 0.5}, *((f"m.{number}.a", (64, 64)) for number in range(3)), ("h", (1, 64)))

    assert text == dedent(
        """\
        plan for my-model

        layers  n  shape  method   rank  saved
        ------  -  -----  ------  -----  -----
        m.*.a   3  64x64     svd  1..31      -

        kept dense, no_saving: At that rank, the factors would save no parameters, or no bytes of a
          quantized weight.
          h (1, 1x64)

        whole checkpoint  before   after  saved  factor
        ----------------  ------  ------  -----  ------
        parameters        12,352  12,352   0.0%    1.00
        bytes             49,408  49,408   0.0%    1.00

        3 to be factored, 1 to be kept dense
        the spectra decide the ranks within these bounds; the sums are upper bounds
        """
    )


def test_a_plan_that_is_exact_gives_ranks_and_savings():
    (row,) = [line for line in planned(5, ("m", (64, 64))).splitlines() if line.startswith("m ")]

    assert row.split() == ["m", "1", "64x64", "svd", "5", "84.4%"]
    assert "upper bounds" not in planned(5, ("m", (64, 64)))


@pytest.mark.parametrize("reason", schema()["reasons"])
def test_a_kept_layer_stands_under_its_reason(table, layer, reason):
    text = table(layer("odd.one", reason=reason))

    assert f"kept dense, {reason}: {schema()['reasons'][reason][:30]}" in text
    assert "odd.one (1, 384x384)" in text
    assert "error, best" not in text


def test_a_reason_of_a_newer_server_stands_by_itself(table, layer):
    assert "kept dense, too_odd\n  odd.one" in table(layer("odd.one", reason="too_odd"))


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["a.0.q", "a.1.q"], ["a.*.q"]),
        (["a.0.q", "a.0.k"], ["a.0.q", "a.0.k"]),
        (["a.0.b.1", "a.0.b.2"], ["a.0.b.*"]),
        (["a.0.b.1", "a.1.b.2"], ["a.*.b.*"]),
        (["a.1", "b.1"], ["a.1", "b.1"]),
        (["a.10"], ["a.10"]),
        (["x", "y.0", "x2", "y.1"], ["x", "y.*", "x2"]),
    ],
)
def test_layers_that_differ_in_a_number_share_a_row(table, layer, names, rows):
    lines = table(*(layer(name) for name in names)).split("\n\n")[1].splitlines()[2:]

    assert [line.split()[0] for line in lines] == rows


@pytest.mark.parametrize("other", [{"shape": (384, 768)}, {"method": "cx"}, {"reason": "no_saving"}])
def test_layers_that_differ_otherwise_do_not_share_a_row(table, layer, other):
    text = table(layer("a.0"), layer("a.1", **other))

    assert "a.*" not in text
    assert "a.0 " in text
    assert "a.1 " in text


@pytest.mark.parametrize(
    ("rank", "said"),
    [(64, "svd at rank 64"), ({"energy": 0.9}, "svd at energy 0.9"), ({"error": 0.1}, "svd at error 0.1")],
)
def test_the_title_names_the_rule(table, rank, said):
    assert said in table(spec={"method": "svd", "rank": rank})
    assert f"{said} with 2 overrides" in table(spec={"method": "svd", "rank": rank, "overrides": [{}, {}]})


def test_a_long_name_is_cut_in_the_middle(table, layer):
    name = "model." + "very." * 40 + "last"
    for one in (layer(name), layer(name, reason="no_saving", shape=(10**12, 10**12))):
        (line,) = [line for line in table(one).splitlines() if "model.very" in line]
        assert len(line) == WIDTH
        assert "..." in line
        assert "very.last" in line


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    names=st.lists(st.text(min_size=1, max_size=200), max_size=4),
    shape=st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)),
    rank=st.integers(1, 10**9),
    warning=st.text(max_size=300),
)
def test_whatever_the_names_a_table_is_plain_and_fits(table, layer, names, shape, rank, warning):
    layers = [layer(name, shape=shape, rank=rank) for name in names]
    layers += [layer(name, shape=shape, reason="no_saving") for name in names]
    text = table(*layers, warnings=[warning], job_id="\x1b[2J")

    assert text.isascii()
    assert all(line.isprintable() and len(line) <= WIDTH for line in text.splitlines())


def test_the_line_on_loading_stands_below_the_sums(report, layer):
    shown = report_table(Report.model_validate(report([layer("x")], how_to_load="Load it so.")))
    assert shown.endswith("\n\nLoad it so.\n")
    assert "Load" not in report_table(Report.model_validate(report([layer("x")])))


def test_layers_that_an_adapter_does_not_hold_are_left_out(table, layer):
    left_out = layer("b", reason="unchanged") | {"parameters_after": 0}
    text = table(layer("a"), left_out)

    assert "left out, unchanged: The weight equals that of the base." in text
    assert "1 left out, in" in text
    assert "kept dense" not in text
