"""The compression spec as command-line options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from eckart.spec import as_spec
from schemas.spec import CompressionSpec, FactorDtype, Layout, Method, Objective, Selector

if TYPE_CHECKING:
    import argparse

RULES = ("ratio", "energy", "error", "budget", "budget_bytes")
FIELDS = (
    "method",
    "selector",
    "include",
    "exclude",
    "transposed",
    "objective",
    "align",
    "min_rank",
    "layout",
    "dtype",
    "seed",
)


def add_spec_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that make up a spec; a rank must be given, one way or another."""
    group = parser.add_argument_group("what is to be done")
    rank = group.add_mutually_exclusive_group(required=True)
    rank.add_argument("--rank", type=int, metavar="K", help="this rank for every layer")
    rank.add_argument(
        "--ratio", type=float, metavar="R", help="at most this share of each layer's parameters"
    )
    rank.add_argument("--energy", type=float, metavar="E", help="at least this share of the squared spectrum")
    rank.add_argument("--error", type=float, metavar="E", help="at most this relative error for each layer")
    rank.add_argument(
        "--budget", type=float, metavar="R", help="at most this share of all layers' parameters together"
    )
    rank.add_argument("--budget-bytes", type=int, metavar="N", help="at most this many bytes of output")
    rank.add_argument("--spec", metavar="FILE|JSON", help="a whole spec, as a JSON file or as JSON text")
    group.add_argument("--method", choices=get_args(Method), help="default: svd")
    group.add_argument("--selector", choices=get_args(Selector), help="of columns and rows, for cur and cx")
    group.add_argument(
        "--include", action="append", metavar="PATTERN", help="layers to factor; may be repeated"
    )
    group.add_argument(
        "--exclude", action="append", metavar="PATTERN", help="layers to keep; may be repeated"
    )
    group.add_argument(
        "--transposed",
        action="append",
        metavar="PATTERN",
        help="layers whose weight is stored as [inputs, outputs], as GPT-2's are; may be repeated",
    )
    group.add_argument(
        "--calibration",
        metavar="FILE|ID",
        help="Gram matrices of the layers' inputs, as eckart.calibrate writes them, or the id of stored ones",
    )
    group.add_argument(
        "--objective",
        choices=get_args(Objective),
        help="the errors that a budget keeps low; default: relative",
    )
    group.add_argument("--align", type=int, metavar="N", help="ranks are multiples of this; default: 1")
    group.add_argument("--min-rank", type=int, metavar="K", help="no layer is factored at a lower rank")
    group.add_argument("--layout", choices=get_args(Layout), help="default: factored")
    group.add_argument("--dtype", choices=get_args(FactorDtype), help="of the factors; default: keep")
    group.add_argument("--seed", type=int, metavar="N", help="default: 0")


def spec_from(options: argparse.Namespace, parser: argparse.ArgumentParser) -> CompressionSpec:
    """Put the options together; what is not given is left to the spec's own defaults."""
    given = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    if options.spec is not None:
        if given:
            options_given = ", ".join("--" + name.replace("_", "-") for name in given)
            parser.error(f"--spec says everything; leave out {options_given}")
        is_json = options.spec.lstrip().startswith("{")
        return as_spec(options.spec if is_json else Path(options.spec).read_bytes())
    return as_spec({**given, "rank": _rank(options)})


def _rank(options: argparse.Namespace) -> int | dict[str, Any]:
    if options.rank is not None:
        return int(options.rank)
    return {rule: getattr(options, rule) for rule in RULES if getattr(options, rule) is not None}
