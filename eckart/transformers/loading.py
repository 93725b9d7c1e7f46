"""Load a compressed folder's tensors into a model that transformers has built on the meta device.

Where factors can run in a layer's place, the layer becomes one of factors, which transformers loads by their
names in the files. Every other factored weight is multiplied out when transformers reads it. So all naming,
stacking, casting and placing stays with transformers.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from eckart.checkpoint import listed
from eckart.errors import LoadError
from eckart.torch.files import BIAS, WEIGHT
from eckart.torch.layers import Compressed
from eckart.torch.matching import Match
from eckart.torch.parts import Trials
from eckart.torch.quantized import QuantizedConv1D
from eckart.torch.swapping import become_compressed, obstacle_to
from eckart.transformers.naming import Naming, rules
from eckart.transformers.stacks import with_stacks, with_unit_scales
from eckart.transformers.tensors import FolderTensors, find_layers, open_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from torch import nn
    from transformers import PreTrainedModel

    from eckart.torch.stored_weight import StoredWeight
    from eckart.transformers.config import EckartConfig

CONVERTED = "transformers stacks or converts it"
ABSENT = "the model has no such layer"  # As a base model has no head.
INSTEAD = "load it with quantization_config=EckartConfig(dequantize=True) and save it, to have a dense folder"


def load_folder(
    load: Callable[..., Any], arguments: dict[str, Any], config: EckartConfig, *, others: Any = None
) -> Any:
    """Call transformers' `_load_pretrained_model` on tensors that it can place, and return what it returns.

    `arguments` are what it was called with, by name. `others` is transformers' quantizer of the weights that
    are not factored, if they are quantized.
    """
    model, state_dict = arguments["model"], arguments["state_dict"]
    _check_placing(arguments)
    with ExitStack() as opened:
        if state_dict is None:
            folder = open_folder(opened, arguments["checkpoint_files"], config.entries())
        else:
            folder = find_layers(state_dict, config.entries())
        folder, stacks = with_stacks(folder)
        naming, trials = Naming(model, folder.tensors.keys(), arguments), Trials()
        matches = _matches(model, folder, naming, trials, dense=config.dequantize)
        swapped = [match for match in matches if match.reason is None]
        for match in swapped:
            layer, stored = model.get_submodule(match.module), match.stored
            become_compressed(layer, stored.form, trials, method=stored.entry.method)
        tensors = _tensors_to_load(folder, matches)
        if _multiplies_scales(others):
            dense = [match.stored for match in matches if match.reason is not None]
            tensors = with_unit_scales(tensors, dense)
        opened.enter_context(_with_shapes_of_files(model))
        result = load(**_as_any_model(arguments, tensors, others))
    restore_zero_biases(model)
    _check_loaded(model, swapped)
    missing = _missing_weights(model, result)
    _check_some_match(matches, missing)
    _check_nothing_below(naming, tensors.keys(), missing)
    _warn_of_dense(matches, stacks, asked_for=config.dequantize)
    config.keep_only({match.stored.name for match in swapped})
    return result


class _Loading(QuantizedConv1D):
    """While transformers loads it: `weight` is the tensor of that name, [outputs, inputs] as in the file.

    Transformers compares the shapes of both.
    """

    @property
    def weight(self) -> torch.Tensor:
        """The integers, where they are stored under this name."""
        integers = self._buffers.get("weight")
        return super().weight if integers is None else integers


@contextmanager
def _with_shapes_of_files(model: nn.Module) -> Iterator[None]:
    layers = [layer for layer in model.modules() if type(layer) is QuantizedConv1D]
    for layer in layers:
        layer.__class__ = _Loading
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = QuantizedConv1D


def restore_zero_biases(model: nn.Module) -> None:
    """Give inner factors of Conv1D layers their bias of zeros, which no file has and transformers resets."""
    for module in model.modules():
        for part in module if isinstance(module, Compressed) else ():
            weight, buffers = part.weight, dict(part.named_buffers(recurse=False))
            assert isinstance(weight, torch.Tensor)
            if "bias" in buffers:
                part.bias = torch.zeros(buffers["bias"].shape, dtype=weight.dtype, device=weight.device)


def options_of(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a call of `_load_pretrained_model`, which transformers 5 gives in one object."""
    return vars(arguments["load_config"]) if "load_config" in arguments else arguments


def _check_placing(arguments: Mapping[str, Any]) -> None:
    options = options_of(arguments)
    if "disk" in (options.get("device_map") or {}).values():
        raise LoadError(f"a compressed folder cannot be offloaded to disk; {INSTEAD}")
    if options.get("device_mesh") is not None:
        raise LoadError(f"a compressed folder cannot be loaded with tensor parallelism; {INSTEAD}")


def _matches(
    model: PreTrainedModel, folder: FolderTensors, naming: Naming, trials: Trials, *, dense: bool
) -> list[Match]:
    """Find the module of each layer, and whether factors can run in its place."""
    state = model.state_dict().keys()
    targets = naming.renamed([layer.name + WEIGHT for layer in folder.layers], state)
    tied = _tied_weights(model)
    matches = []
    for layer in folder.layers:
        target = targets.get(layer.name + WEIGHT)
        if target is None:
            reason: str | None = CONVERTED if layer.name + WEIGHT in targets else ABSENT
        else:
            reason = (
                "dense weights were asked for" if dense else _obstacle(model, layer, target, tied, trials)
            )
        matches.append(Match(layer, (target or "").removesuffix(WEIGHT), reason))
    return _without_unknown_names(matches, folder.tensors.keys(), naming, state)


def _obstacle(
    model: PreTrainedModel, layer: StoredWeight, target: str, tied: Collection[str], trials: Trials
) -> str | None:
    if not target.endswith(WEIGHT):
        return "it is no linear layer"
    if target in tied:
        return "it is tied to another weight"
    module = model.get_submodule(target.removesuffix(WEIGHT))
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if tuple(weight.shape) != layer.form.shape:
        return "it has another shape in the model"
    found = obstacle_to(module, layer.form, trials)
    return None if found is None else f"its {type(module).__name__} {found}"


def _tied_weights(model: PreTrainedModel) -> set[str]:
    """Return the names of parameters that are, or that transformers will make, one with another."""
    planned = getattr(model, "all_tied_weights_keys", None) or {}  # transformers 5
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name for shared in names.values() if len(shared) > 1 for name in shared}
    return {*planned.keys(), *planned.values(), *tied}


def _without_unknown_names(
    matches: list[Match], stored: Collection[str], naming: Naming, state: Collection[str]
) -> list[Match]:
    """Multiply out what transformers would not find as factors.

    A rule may ask for the weight's own name, or make the bias of a tensor with another name, as in VideoMAE.
    """
    wanted = {match.module: _names_once_factored(match, state) for match in matches if match.reason is None}
    targets = {target for names in wanted.values() for target in names.values()}
    found = naming.renamed([name for names in wanted.values() for name in names], {*state, *targets})
    return [
        replace(match, reason="transformers converts its name")
        if any(
            name not in stored or found.get(name) != target
            for name, target in wanted.get(match.module, {}).items()
        )
        else match
        for match in matches
    ]


def _names_once_factored(match: Match, state: Collection[str]) -> dict[str, str]:
    """Map the names of a layer's tensors in the files to those that they have once it is one of factors."""
    bias = [match.stored.bias] if match.module + BIAS in state else []
    names = [*match.stored.tensors.values(), *bias]
    return {name: match.module + name.removeprefix(match.stored.name) for name in names}


def _tensors_to_load(folder: FolderTensors, matches: list[Match]) -> dict[str, Any]:
    """Return the tensors by their names in the files, with a product in place of factors that cannot run."""
    tensors: dict[str, Any] = dict(folder.tensors)
    for layer in (match.stored for match in matches if match.reason is not None):
        for name in layer.tensors.values():
            del tensors[name]
        tensors[layer.name + WEIGHT] = folder.multiplied_out(layer)
        if layer.bias in tensors:
            tensors[layer.name + BIAS] = tensors.pop(layer.bias)
    return tensors


def _multiplies_scales(quantizer: Any) -> bool:
    """Whether transformers decodes fp8 weights while it loads them."""
    config = getattr(quantizer, "quantization_config", None)
    return getattr(config, "quant_method", None) == "fp8" and bool(getattr(config, "dequantize", False))


def _as_any_model(arguments: Mapping[str, Any], tensors: dict[str, Any], quantizer: Any) -> dict[str, Any]:
    """Return arguments by which transformers loads the tensors as those of a model that has no factors."""
    changed = {**arguments, "state_dict": tensors, "checkpoint_files": None}
    if "load_config" in arguments:
        return changed | {"load_config": replace(arguments["load_config"], hf_quantizer=quantizer)}
    # Transformers 4 needs real tensors, and would otherwise take the names from the index.
    read = {name: tensor[...] for name, tensor in tensors.items()}
    return changed | {"state_dict": read, "sharded_metadata": None, "hf_quantizer": quantizer}


def _check_loaded(model: PreTrainedModel, swapped: list[Match]) -> None:
    """Refuse factors that transformers has not loaded, and would fill with random numbers."""
    for match in swapped:
        module = model.get_submodule(match.module)
        for name, tensor in module.state_dict(keep_vars=True).items():
            if tensor.is_meta:
                raise LoadError(
                    f"transformers did not load {match.module}.{name}: this version of eckart does not fit "
                    "this one of transformers; upgrade eckart, or load with EckartConfig(dequantize=True)"
                )


def _missing_weights(model: PreTrainedModel, result: Any) -> list[str]:
    """Return the matrices that transformers has not loaded and will draw, by what loading returned."""
    tied = _tied_weights(model)
    # Transformers 4 has drawn them and lists them; transformers 5 is going to draw what is still on meta.
    drawn = set() if rules is not None else set(result[1])
    return [
        name
        for name, parameter in model.named_parameters()
        if (parameter.is_meta or name in drawn) and parameter.dim() > 1 and name not in tied
    ]


def _check_some_match(matches: list[Match], missing: list[str]) -> None:
    """Refuse a model that has none of the factored layers; one that only has another head has some."""
    if matches and missing and all(match.reason == ABSENT for match in matches):
        layers = listed([match.stored.name for match in matches])
        raise LoadError(
            f"the model has none of the folder's factored layers, {layers}, and lacks {listed(missing)}; "
            "load the class that the folder was made from, or give a key_mapping"
        )


def _check_nothing_below(naming: Naming, stored: Collection[str], missing: Collection[str]) -> None:
    """Refuse weights that would be random though the files hold tensors of their modules, such as factors."""
    owners = {module + WEIGHT: name for name in stored for module in _owners(name) if missing}
    found = {
        target: owners[weight]
        for weight, target in naming.renamed(sorted(owners.keys() - stored), missing).items()
        if target is not None
    }
    if found:
        raise LoadError(
            f"transformers would fill {listed(list(found))} with random numbers, though the files hold "
            f"{listed(list(found.values()))}: the folder is damaged, its config.json lacks these layers, or "
            "its factors were factored again. Compress the original folder again. If the weights are to be "
            "new, load what `eckart expand` makes of the folder"
        )


def _owners(name: str) -> Iterator[str]:
    """Yield the module of a tensor, and those of which it may be a factor."""
    module, _, _ = name.rpartition(".")
    yield module
    while (parts := module.rpartition("."))[2].isdecimal():
        module = parts[0]
        yield module


def _warn_of_dense(matches: list[Match], stacks: list[str], *, asked_for: bool) -> None:
    dense = [
        f"{match.stored.name}: {match.reason}" for match in matches if match.reason not in {None, ABSENT}
    ]
    dense += [f"{stack}: transformers runs its experts as one tensor" for stack in stacks]
    if dense and not asked_for:
        warnings.warn(
            f"{len(dense)} factored layers are loaded with dense weights: {listed(dense)}", stacklevel=2
        )
