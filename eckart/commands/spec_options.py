"""The spec as options: one for each simple field, made from the server's JSON schema."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.spec import schema, spec_document

if TYPE_CHECKING:
    from collections.abc import Sequence

KNOWN_PAIRS = "neurons"
# How a JSON schema's types are read from a command line.
NUMBERS: dict[str, tuple[type, str]] = {"integer": (int, "N"), "number": (float, "X")}


def add_spec_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each simple field of the server's spec, and `--spec` for all others."""
    spec = schema()["spec"]
    fields = spec["properties"]
    group = parser.add_argument_group("the spec")
    rank = group.add_mutually_exclusive_group()
    rank.add_argument("--rank", type=int, metavar="K", help="the rank of every layer")
    for name in rank_rules():
        add_option(rank, name, spec["$defs"]["SpecRule"]["properties"][name])
    rank.add_argument("--spec", metavar="FILE|JSON", help="a whole spec, as a JSON file or as JSON text")
    for name in simple_fields():
        add_option(group, name, fields[name])
    pairs = fields["pairs"]["description"].replace("%", "%%")
    group.add_argument("--pairs", type=_pairs, metavar=f"{KNOWN_PAIRS}|JSON", help=pairs)
    group.add_argument(
        "--calibration",
        metavar="FILE|ID",
        help="Gram matrices of the layers' inputs, as eckart.calibrate writes them, or the id of stored ones",
    )
    group.add_argument(
        "--base",
        metavar="CHECKPOINT|ID",
        help="the checkpoint that this one was fine-tuned from: compress the difference. Without --layout "
        "the result is a LoRA adapter",
    )


def add_option(group: Any, name: str, field: dict[str, Any]) -> None:
    """Turn one field of a JSON schema into an option."""
    field = value_schema(field)
    text = field["description"].replace("%", "%%")
    if default := field.get("default"):
        text += f" Default: {', '.join(default) if isinstance(default, list) else default}."
    option = "--" + name.replace("_", "-")
    if "oneOf" in field:
        text += " Several by commas, or repeated."
        names = _one_of(field)["enum"]
        metavar = "{" + ",".join(names) + "}"
        group.add_argument(option, action="extend", type=partial(_listed, names), metavar=metavar, help=text)
    elif "enum" in field:
        kind = NUMBERS[field["type"]][0] if field.get("type") in NUMBERS else str
        group.add_argument(option, type=kind, choices=field["enum"], help=text)
    elif field["type"] == "array":
        group.add_argument(option, action="append", metavar="PATTERN", help=text + " May be repeated.")
    else:
        kind, metavar = NUMBERS[field["type"]]
        group.add_argument(option, type=kind, metavar=metavar, help=text)


def _listed(names: Sequence[str], text: str) -> list[str]:
    given = text.split(",")
    for name in given:
        if name not in names:
            known = ", ".join(map(repr, names))
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {known})")
    return given


def _pairs(text: str) -> Any:
    if text == KNOWN_PAIRS:
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"give {KNOWN_PAIRS}, or the pairs as a JSON list") from None


def value_schema(field: dict[str, Any]) -> dict[str, Any]:
    """Return an optional field's schema without its null."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind.get("type") != "null"]
    return {**field, **kinds[0]} if len(kinds) == 1 else field


def rank_rules() -> list[str]:
    """Return the rules that can take the place of a rank."""
    return list(schema()["spec"]["$defs"]["SpecRule"]["properties"])


def simple_fields() -> list[str]:
    """Return the fields that an option made from the schema can hold; the others have their own."""
    return [name for name, field in schema()["spec"]["properties"].items() if is_simple(value_schema(field))]


def _one_of(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one value of a field that may also be a list."""
    one: dict[str, Any] = next(kind for kind in field["oneOf"] if kind["type"] == "string")
    return one


def is_simple(field: dict[str, Any]) -> bool:
    if "oneOf" in field and all("type" in kind for kind in field["oneOf"]):
        return any("enum" in kind for kind in field["oneOf"])
    if field.get("type") == "array":
        return bool(field["items"].get("type") == "string")
    return "enum" in field or field.get("type") in NUMBERS


def spec_from(options: argparse.Namespace) -> dict[str, Any]:
    """Make the spec from the options; the server fills in the defaults of all others."""
    fields = (*simple_fields(), "pairs")
    given = {name: getattr(options, name) for name in fields if getattr(options, name) is not None}
    if options.spec is not None:
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            options.parser.error(f"--spec is the whole spec; leave out {names}")
        is_json = options.spec.lstrip().startswith("{")
        return spec_document(options.spec if is_json else Path(options.spec).read_bytes())
    if options.base is not None:
        given.setdefault("layout", "adapter")
    if len(given.get("method", ())) == 1:
        given["method"] = given["method"][0]
    rules = {name: getattr(options, name) for name in rank_rules() if getattr(options, name) is not None}
    rank = rules or options.rank
    if rank is None and "method" not in given:
        names = " ".join("--" + name.replace("_", "-") for name in ("rank", *rank_rules(), "spec"))
        options.parser.error(f"one of the arguments {names} is required")
    return spec_document(given if rank is None else {**given, "rank": rank})
