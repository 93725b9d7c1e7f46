"""Load compressed checkpoints into stock torch modules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from eckart.checkpoint import listed, open_checkpoint
from eckart.errors import InputError, LoadError, missing_extra

try:
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise missing_extra(error, "torch") from error

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    Shapes = Mapping[str, tuple[int, ...]]

Model = TypeVar("Model", bound=nn.Module)
Size = Annotated[int, Field(ge=1)]

METADATA_KEY = "eckart"
WEIGHT = ".weight"
BIAS = ".bias"
LEAST_FACTORS, MOST_FACTORS = 2, 3


class FactoredLayer(BaseModel):
    """One weight that a file holds as factors; a newer version may add fields."""

    method: str
    rank: Size
    shape: tuple[Size, Size]
    # The codec that stores the matrices; None where each is one tensor, as it is.
    codec: str | None = None
    # `shape` is then [inputs, outputs], and so are the factors'.
    transposed: bool = False


class Manifest(BaseModel):
    """The `eckart` entry of a file's metadata: its factored layers by module name."""

    version: Literal[1]
    layers: dict[str, FactoredLayer]


@dataclass(frozen=True, slots=True)
class Decoder:
    """How a codec is read: the endings of the names of a matrix's stored tensors, and the way back.

    `shape` and `decode` take the shapes, or the tensors, in the order of the endings, and return the shape of
    the matrix, or the matrix.
    """

    endings: tuple[str, ...]
    shape: Callable[..., tuple[int, ...]]
    decode: Callable[..., Tensor]

    def names(self, matrix: str) -> tuple[str, ...]:
        """Return the names of a matrix's stored tensors."""
        return tuple(matrix + ending for ending in self.endings)


# By the codec's name in the metadata. Where it names none, each matrix is one tensor of a floating dtype. A
# new codec needs one entry here.
DECODERS: dict[str | None, Decoder] = {
    None: Decoder(("",), shape=lambda shape: shape, decode=lambda matrix: matrix),
}


@dataclass(frozen=True, slots=True)
class Contents:
    """What the headers of a checkpoint's files say: its factored layers, and shapes as they are once decoded.

    `encoded` holds the decoder of each matrix of a factored layer.
    """

    shards: tuple[Path, ...]
    shapes: Shapes
    factored: Mapping[str, FactoredLayer]
    encoded: Mapping[str, Decoder]

    def load(self) -> dict[str, Tensor]:
        """Load all tensors, and decode those that a codec stores."""
        tensors = {name: tensor for shard in self.shards for name, tensor in load_file(shard).items()}
        for name, decoder in self.encoded.items():
            stored = [tensors.pop(part) for part in decoder.names(name)]
            tensors[name] = decoder.decode(*stored)
        return tensors


@dataclass(frozen=True, slots=True)
class Swap:
    """One Linear or Conv1D, and the sizes of the chain that replaces it, input first."""

    name: str
    layer: nn.Module
    sizes: tuple[int, ...]
    transposed: bool

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of each part of the chain."""
        return tuple(pairwise(self.sizes))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The entries of the chain in the model's state dict."""
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.name}.{i}{WEIGHT}": step if self.transposed else step[::-1]
            for i, step in enumerate(self.steps)
        }
        if self.layer.bias is not None:
            shapes[f"{self.name}.{len(self.steps) - 1}{BIAS}"] = self.sizes[-1:]
        return shapes


def load_compressed(model: Model, path: str | os.PathLike[str]) -> Model:
    """Load a compressed checkpoint, a file, an index or a directory, into the model it was made from.

    An `nn.Sequential` of two or three replaces each factored `nn.Linear`, on the same device, of the same
    dtype and mode; likewise each `Conv1D` whose weight was factored as `transposed`. Then everything is
    loaded strictly. The model is changed in place and returned. A mismatch raises a LoadError before any
    change.
    """
    contents = _read_headers(Path(path))
    shapes = contents.shapes
    swaps = [
        _plan_swap(model, name, entry, shapes)
        for name, entry in contents.factored.items()
        if name + WEIGHT not in shapes  # multiplied out: `layout: dense`
    ]
    aliases = _tied_names(model, shapes)
    _check_names(model, swaps, shapes, aliases)
    tensors = contents.load()
    tensors |= {name: tensors[alias] for name, alias in aliases.items()}
    for swap in swaps:
        model.set_submodule(swap.name, _chain(swap))
    model.load_state_dict(tensors, strict=True)
    return model


def _read_headers(path: Path) -> Contents:
    """Read names, shapes and factored layers; each shard describes only its own."""
    shards = open_checkpoint(path).shards
    shapes: dict[str, tuple[int, ...]] = {}
    factored: dict[str, FactoredLayer] = {}
    for shard in shards:
        try:
            with safe_open(shard, "pt") as file:
                own = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise InputError(f"{shard}: {error}") from error
        layers = _manifest(shard, metadata)
        if twice := [name for name in own if name in shapes] + [name for name in layers if name in factored]:
            raise LoadError(f"two shards, one of them {shard}, hold {listed(twice)}; compress it again")
        shapes |= own
        factored |= layers
    encoded: dict[str, Decoder] = {}
    for name, entry in factored.items():
        encoded |= _decoded_matrices(name, entry.codec, shapes)
    return Contents(shards, shapes, factored, encoded)


def _decoded_matrices(name: str, codec: str | None, shapes: dict[str, tuple[int, ...]]) -> dict[str, Decoder]:
    """Return the decoder of each matrix of a layer; in `shapes`, it takes the place of its stored tensors."""
    decoder = DECODERS.get(codec)
    if decoder is None:
        raise LoadError(
            f"{name} is stored in the codec {codec!r}, which this version of eckart cannot read; upgrade it"
        )
    found = {}
    for matrix in (name + WEIGHT, *(f"{name}.{i}{WEIGHT}" for i in range(MOST_FACTORS))):
        stored = decoder.names(matrix)
        present = [part for part in stored if part in shapes]
        if not present:
            continue
        if len(present) < len(stored):
            lost = listed([part for part in stored if part not in shapes])
            raise LoadError(
                f"the checkpoint lacks {lost}; the file is damaged, compress the checkpoint again"
            )
        shapes[matrix] = decoder.shape(*(shapes.pop(part) for part in stored))
        found[matrix] = decoder
    return found


def _manifest(shard: Path, metadata: Mapping[str, str]) -> Mapping[str, FactoredLayer]:
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        return Manifest.model_validate_json(text).layers
    except ValidationError as error:
        raise LoadError(
            f"{shard}: this version of eckart does not understand the {METADATA_KEY!r} entry of its metadata "
            f"({error.errors()[0]['msg']}); upgrade eckart, or compress the checkpoint again"
        ) from error


def _plan_swap(model: nn.Module, name: str, entry: FactoredLayer, shapes: Shapes) -> Swap:
    layer = _layer(model, name, transposed=entry.transposed)
    own = layer.weight
    assert isinstance(own, Tensor)
    if entry.shape != tuple(own.shape):
        raise LoadError(
            f"{name} is a {type(layer).__name__} of shape {list(own.shape)} in the model, but of "
            f"{list(entry.shape)} in the checkpoint; build the model with the checkpoint's own configuration"
        )
    shared = [other for other, weight in _parameters(model) if weight is own]
    if shared != [name + WEIGHT]:
        raise LoadError(
            f"the weight of {name} is tied: it is {' and '.join(shared)} in one. A factored layer cannot "
            f"share its weight; untie it, or compress again with {name!r} excluded"
        )
    return Swap(name, layer, _sizes(name, entry, shapes), entry.transposed)


def _layer(model: nn.Module, name: str, *, transposed: bool) -> nn.Module:
    try:
        module = model.get_submodule(name) if name else None
    except AttributeError:
        module = None
    if module is None:
        raise LoadError(f"the checkpoint holds factors of {name!r}, but the model has no such module")
    kind = type(module).__name__
    if kind == "Conv1D" and not transposed:
        raise LoadError(
            f"{name} is a Conv1D, which stores its weight transposed; compress again with {name!r} among the "
            "`transposed`"
        )
    if type(module) is nn.Linear and transposed:
        raise LoadError(
            f"{name} is a Linear, but was factored as `transposed`; compress again without {name!r} there"
        )
    if type(module) is nn.Linear or kind == "Conv1D":
        return module
    why = {
        "NonDynamicallyQuantizableLinear": "whose weight nn.MultiheadAttention uses by itself",
    }.get(kind, "not a plain nn.Linear, so nothing can take its place")
    raise LoadError(f"{name} is a {kind}, {why}; compress again with {name!r} excluded, or with layout dense")


def _sizes(name: str, entry: FactoredLayer, shapes: Shapes) -> tuple[int, ...]:
    """Check that the factors chain from the layer's inputs to its outputs through its rank."""
    names = [f"{name}.{i}{WEIGHT}" for i in range(MOST_FACTORS)]
    found = [shapes[factor] for factor in names if factor in shapes]
    outputs, inputs = reversed(entry.shape) if entry.transposed else entry.shape
    sizes = (inputs, *(entry.rank for _ in found[1:]), outputs)
    wanted = [step if entry.transposed else step[::-1] for step in pairwise(sizes)]
    if len(found) < LEAST_FACTORS or found != wanted or names[len(found) - 1] not in shapes:
        raise LoadError(
            f"the factors of {name} have the shapes {[list(shape) for shape in found]}, which do not make up "
            f"{list(entry.shape)} at rank {entry.rank}; the file is damaged, compress the checkpoint again"
        )
    return sizes


def _parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _tied_names(model: nn.Module, shapes: Shapes) -> dict[str, str]:
    """Map names that are not in the file, such as a tied head's, to the name of their tensor there."""
    stored = {weight: name for name, weight in _parameters(model) if name in shapes}
    return {
        name: stored[weight] for name, weight in _parameters(model) if name not in shapes and weight in stored
    }


def _check_names(model: nn.Module, swaps: Iterable[Swap], shapes: Shapes, aliases: Mapping[str, str]) -> None:
    """Refuse what a strict load would refuse, naming the layer, while the model is unchanged."""
    wanted = {name: shape for name, shape in _state_shapes(model).items() if name not in aliases}
    for swap in swaps:
        del wanted[swap.name + WEIGHT]
        wanted.pop(swap.name + BIAS, None)
        wanted |= swap.shapes
    if missing := [name for name in wanted if name not in shapes]:
        raise LoadError(f"the checkpoint lacks what the model needs: {listed(missing)}")
    if extra := [name for name in shapes if name not in wanted]:
        raise LoadError(f"the model has no place for what the checkpoint holds: {listed(extra)}")
    for name, shape in wanted.items():
        if shape != shapes[name]:
            raise LoadError(
                f"{name} is {list(shape)} in the model, but {list(shapes[name])} in the checkpoint"
            )


def _state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    state = model.state_dict()
    if any(isinstance(value, Tensor) and value.is_meta for value in state.values()):
        raise LoadError("the model is on the meta device; give it memory first: model.to_empty(device='cpu')")
    return {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}


def _chain(swap: Swap) -> nn.Sequential:
    """Build the empty layers that replace one; only the last has a bias, if the old one had."""
    old = swap.layer
    assert isinstance(old.weight, Tensor)
    biases = [False] * (len(swap.steps) - 1) + [old.bias is not None]
    parts = zip(swap.steps, biases, strict=True)
    make = partial(_conv1d, type(old)) if swap.transposed else _linear
    with torch.device("meta"):
        chain = nn.Sequential(*(make(*step, bias=bias) for step, bias in parts))
    chain.to_empty(device=old.weight.device).to(old.weight.dtype)
    for part, bias in zip(chain, biases, strict=True):
        if swap.transposed and not bias:
            assert isinstance(part.bias, Tensor)
            part.bias.zero_()
    return chain.requires_grad_(old.weight.requires_grad).train(old.training)


def _linear(inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=bias)


def _conv1d(kind: Callable[[int, int], nn.Module], inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    """Build a layer of the model's own class, which needs a bias: zeros outside of the state dict."""
    part = kind(outputs, inputs)
    if not bias:
        del part.bias
        part.register_buffer("bias", torch.empty(outputs), persistent=False)
    return part
