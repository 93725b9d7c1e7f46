"""The model card of a result, README.md: what was done, the errors, and the lines that run it."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from schemas.format.companion import MODULES_NAME
from schemas.format.names import SHARD
from schemas.planning.forms import CONV_FORMS, FORMS, FormOptions
from schemas.planning.model_folder import INSTALL, is_loadable, original_weights
from schemas.report import REPORT_NAME, CheckpointReport, LayerReport, Report

CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# The libraries that load a factored model after `import eckart.transformers`.
IMPORTED = ("transformers", "sentence-transformers")
# The YAML block at the begin of a card on the hub.
FRONT_MATTER = re.compile(rb"\A---[ \t]*\r?\n(?:.*?\n)??---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# The names under which transformers and diffusers look for weights of a variant, such as fp16.
VARIANT = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(?P<one>[A-Za-z][A-Za-z0-9_-]*)\.safetensors"
    r"|\.safetensors\.index\.(?P<index>[A-Za-z][A-Za-z0-9_-]*)\.json)"
)
# `eckart expand` finds the parts of a card by these, and writes its own for some; so they do not change.
WHAT_IT_IS = "<!-- eckart: what this folder is -->"
WHAT_WAS_DONE = "<!-- eckart: what was done -->"
HOW_TO_RUN = "<!-- eckart: how to run it -->"
NOTES = "<!-- eckart: notes -->"
# Not shown: the lines that run the folder once it is expanded.
ONCE_EXPANDED, CLOSED = "<!-- eckart: once expanded", "-->"
# By what a weight is replaced.
FACTORS, INTEGERS, BOTH = "low-rank factors", "integers", "integers and low-rank factors"
PIVOT = "some of their rows and coefficients for the others"


def model_card(
    report: Report,
    config: Mapping[str, Any],
    companions: Collection[str],
    original: bytes,
    *,
    is_factored: bool,
    is_plain: bool = False,
) -> bytes:
    """Return the text of the card: ours, then that of the input, whose front matter stays on top.

    A factored result that `is_plain` is loaded by its own library, with the package compressed-tensors.

    Apart from the input's card, the text holds numbers and fixed words only: nothing in it comes from names.
    """
    found = FRONT_MATTER.match(original)
    front = found[0] if found else _front_matter(report, config, companions).encode()
    body = original[found.end() :] if found else original
    front = front if front.endswith(b"\n") else front + b"\n"
    usage = _usage(report, config, companions, is_factored=is_factored, is_plain=is_plain)
    own = "\n".join([*_introduction(report), "", HOW_TO_RUN, "", *usage, "", NOTES, "", *_notes(companions)])
    rest = b"\n---\n\n" + body.lstrip(b"\r\n") if body.strip() else b""
    return front + b"\n" + own.encode() + b"\n" + rest


def _front_matter(report: Report, config: Mapping[str, Any], companions: Collection[str]) -> str:
    library = f"library_name: {name}\n" if (name := _library(config, companions)) else ""
    kinds = _kinds(report)
    is_low_rank, is_quantized = kinds.keys() - {INTEGERS}, kinds.keys() - {FACTORS, PIVOT}
    known = (("low-rank", is_low_rank), ("quantized", is_quantized), ("pruned", _narrowed(report)))
    tags = "".join(f"- {tag}\n" for tag, applies in (("eckart", True), *known) if applies)
    return f"---\n{library}tags:\n{tags}---\n"


def _kinds(report: Report) -> dict[str, int]:
    """Return by what weights were replaced, with the number of layers."""
    replaced = (layer for layer in report.layers if layer.outcome == "factored" and layer.shape_after is None)
    return dict(Counter(_kind(layer.method) for layer in replaced))


def _kind(method: str) -> str:
    form = FORMS.get(method) or CONV_FORMS[method]
    if form.of(FormOptions()).quantizer is None:
        return PIVOT if method == "pivot" else FACTORS
    return BOTH if form.has_ranks else INTEGERS


def _library(config: Mapping[str, Any], companions: Collection[str]) -> str | None:
    """Return the library that the model is loaded with, where its files tell it."""
    if MODULES_NAME in companions:
        return "sentence-transformers"
    if "model_type" in config or "architectures" in config:
        return "transformers"
    return "diffusers" if _diffusers_class(config) else None


def _introduction(report: Report) -> list[str]:
    totals, spec = report.totals, report.spec
    methods = ", ".join(sorted({layer.method for layer in report.layers if layer.outcome == "factored"}))
    parameters = f"{totals.parameters_before:,} → {totals.parameters_after:,}"
    rows = [
        ("method", methods or "none"),
        ("rank", f"`{json.dumps(spec['rank'])}`" if "rank" in spec else "none"),
        ("layout", str(spec["layout"])),
        ("layers factored, kept dense", f"{totals.layers_factored:,}, {totals.layers_kept:,}"),
        ("parameters", f"{parameters} ({totals.parameter_savings:.1%} saved)"),
        ("bytes of weights", f"{totals.bytes_before:,} → {totals.bytes_after:,}"),
        ("relative error of the factored weights", f"{totals.relative_error:.4g}"),
    ]
    if narrowed := _narrowed(report):
        rows.insert(2, ("neurons of an MLP", _neurons(narrowed)))
    if totals.weighted_error is not None:
        rows.append(("relative error of the layers' outputs", f"{totals.weighted_error:.4g}"))
    if totals.predicted_loss is not None:
        rows.append(("predicted rise of the loss", f"{totals.predicted_loss:.4g}"))
    return [
        WHAT_IT_IS,
        "",
        "# Compressed with Eckart",
        "",
        f"{_what_was_done(report)} `{REPORT_NAME}` has the rank and the error of each layer.",
        "",
        WHAT_WAS_DONE,
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in rows),
    ]


def _what_was_done(report: Report) -> str:
    narrowed = len(_narrowed(report))
    kinds = _kinds(report)
    texts = []
    if narrowed:
        texts.append(
            "1 MLP has fewer neurons." if narrowed == 1 else f"{narrowed:,} MLPs have fewer neurons."
        )
    if kinds or not narrowed:
        factored = sum(kinds.values())
        count = "1 layer was" if factored == 1 else f"{factored:,} layers were"
        by = [f"{number:,} by {kind}" for kind, number in kinds.items()]
        how = f": {', '.join(by)}" if len(by) > 1 else "".join(f" by {kind}" for kind in kinds)
        texts.append(f"{count} replaced{how}.")
    return " ".join(texts)


def _narrowed(report: Report) -> list[LayerReport]:
    """Return the layers behind neurons that were cut, one for each MLP."""
    return [layer for layer in report.layers if layer.shape_after is not None and layer.columns is not None]


def _neurons(narrowed: Iterable[LayerReport]) -> str:
    """Return the numbers of neurons before and after, each once."""
    numbers = {(layer.shape[0 if layer.transposed else 1], layer.rank or 0) for layer in narrowed}
    return ", ".join(f"{before:,} → {after:,}" for before, after in sorted(numbers))


def _usage(
    report: Report,
    config: Mapping[str, Any],
    companions: Collection[str],
    *,
    is_factored: bool,
    is_plain: bool,
) -> list[str]:
    if not is_factored:
        return _code(_loading(_names(report.output), config, companions))
    library, is_other = _library(config, companions), not is_loadable(config)
    lines, extra, hidden = _loading_into(config), "eckart[torch]", []
    if library in IMPORTED and not is_other:
        lines = ["import eckart.transformers", *_loading((), config, companions)]
        extra = "eckart[transformers]"
    if library is not None and not is_other:
        # The weights of a folder that was compressed before get their first name back when it is expanded.
        weights = [original_weights(config, name) or name for name in _names(report.input)]
        hidden = [ONCE_EXPANDED, *_loading(weights, config, companions), CLOSED, ""]
    needs = [
        f"Install `{extra}` first. Never load this folder with `from_pretrained` alone: no library knows",
        "the factored layers by itself.",
    ]
    if is_plain:
        lines = _loading(_names(report.output), config, companions)
        needs = [f"It needs the package compressed-tensors, and not Eckart: `{INSTALL}`."]
    return [*hidden, *_code(lines), "", *needs]


def _names(checkpoint: CheckpointReport) -> list[str]:
    return [file.name for file in checkpoint.files]


def _code(lines: Iterable[str]) -> list[str]:
    return ["Run it in this folder:", "", "```python", *lines, "```"]


def _notes(companions: Collection[str]) -> list[str]:
    notes = ["If you publish this folder, name the model that it was made from as `base_model` above."]
    if MODULES_NAME in companions:
        notes += [
            "",
            f"`{MODULES_NAME}` names subfolders, such as `1_Pooling`. Where they are not here, copy them",
            "from the folder of the model that this one was made from: it does not load without them.",
        ]
    return notes


def _loading(weights: Iterable[str], config: Mapping[str, Any], companions: Collection[str]) -> list[str]:
    """Return the lines that load the model with its own library, or into a model where that is not known.

    `weights` are the names of the files, of which one may be that of a variant.
    """
    library = _library(config, companions)
    if library == "sentence-transformers":
        return ["from sentence_transformers import SentenceTransformer", 'model = SentenceTransformer(".")']
    name = _diffusers_class(config) if library == "diffusers" else _class_name(config)
    if library is None:
        return _loading_into(config)
    variant = _variant(weights)
    options = f', variant="{variant}"' if variant else ""
    return [f"from {library} import {name}", f'model = {name}.from_pretrained("."{options})']


def _loading_into(config: Mapping[str, Any]) -> list[str]:
    """Return the lines that load the weights into a model that its own code has built."""
    load = ["from eckart.torch import load_compressed", "", 'load_compressed(model, ".")']
    if not (name := _diffusers_class(config)):
        return load
    build = f'model = {name}.from_config({name}.load_config("."))'
    return [f"from diffusers import {name}", *load[:2], build, load[2]]


def _variant(names: Iterable[str]) -> str | None:
    """Return the variant of the weights among these files."""
    whole = (VARIANT.fullmatch(name) for name in names if not SHARD.fullmatch(name))
    return next((found["one"] or found["index"] for found in whole if found), None)


def _diffusers_class(config: Mapping[str, Any]) -> str | None:
    name = config.get("_class_name")
    return name if isinstance(name, str) and CLASS_NAME.fullmatch(name) else None


def _class_name(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    is_known = isinstance(first, str) and CLASS_NAME.fullmatch(first) and "auto_map" not in config
    return str(first) if is_known else "AutoModel"
