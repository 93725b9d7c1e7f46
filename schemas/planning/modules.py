"""What names, shapes and metadata around a weight say of its module, before any value is read."""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence

from schemas.format.encodings import EncodedWeight
from schemas.format.stacks import ExpertMatrix
from schemas.format.tensor import BIAS, WEIGHT
from schemas.planning.layer import Tensor
from schemas.planning.patterns import Patterns
from schemas.report import KeptReason
from schemas.spec import EMBEDDINGS

# In the order of characters "/" follows ".", so that these two enclose all names below a module.
BELOW, AFTER = ".", "/"
# Parts of the names of a LoRA's matrices, and the same part of the other half of the pair.
PARTNERS = {"lora_A": "lora_B", "lora_B": "lora_A", "lora_down": "lora_up", "lora_up": "lora_down"}
# Parts that say it only below a part with `lora` in it, as in `to_q_lora.down`.
PARTNERS_BELOW_LORA = {"down": "up", "up": "down"}
# torch's MultiheadAttention has some of these beside an `out_proj` that it reads without calling it.
ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
EMBEDDING_PATTERNS = Patterns(EMBEDDINGS)


class Modules:
    """The modules of a checkpoint with a matrix, or more sides, as their weight, by the names of its tensors.

    `aliases` are the metadata entries by which a writer says that a tensor is also another one: the name that
    is not stored, and the name that is.
    """

    def __init__(self, tensors: Sequence[Tensor], aliases: Mapping[str, str]) -> None:
        self._shapes = _shapes(tensors)
        self._names = sorted(self._shapes)
        self._shared = frozenset(aliases.values())
        self._turned = frozenset(
            tensor.name.removesuffix(WEIGHT)
            for tensor in tensors
            if isinstance(tensor, ExpertMatrix | EncodedWeight) and tensor.transposed
        )
        self._transposed_in: dict[str, set[bool]] = {}
        for name in self._names:
            if name.endswith(WEIGHT):
                self._note_orientation(name.removesuffix(WEIGHT))

    def has_below(self, module: str, ending: str) -> bool:
        """Return whether there is a tensor of this name below a module that has a matrix as its weight."""
        return module + ending in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; () if there is none of this name."""
        return self._shapes.get(name, ())

    def has_bias(self, module: str) -> bool:
        """Return whether a module has a bias as long as one side of its weight."""
        bias = self._shapes.get(module + BIAS, ())
        return len(bias) == 1 and bias[0] in self._shapes.get(module + WEIGHT, ())

    def is_shared(self, name: str) -> bool:
        """Return whether the metadata name a tensor for one that is not stored."""
        return name in self._shared

    def is_embedding(self, module: str) -> bool:
        """Return whether a module is an embedding by its name; one with a bias is none."""
        return not self.has_bias(module) and EMBEDDING_PATTERNS.fit(module)

    def reason_to_keep(self, module: str) -> KeptReason | None:
        """Return why the module of a weight is no plain linear layer, or None."""
        if self._is_adapter(module):
            return "adapter"
        parent, _, last = module.rpartition(".")
        if last == "out_proj" and any(
            f"{parent}.{name}".lstrip(".") in self._shapes for name in ATTENTION_WEIGHTS
        ):
            return "not_called"
        if module + WEIGHT in self._shared:
            return "tied"
        if self._count_below(module) > 1 + (module + BIAS in self._shapes):
            return "more_than_a_linear"
        return None

    def is_turned(self, module: str) -> bool:
        """Return whether a weight is that of an expert in a stack which is stored as [inputs, outputs]."""
        return module in self._turned

    def is_transposed(self, module: str) -> bool:
        """Return whether biases say that a weight is stored as [inputs, outputs].

        A bias as long as the second side and not the first says so of its own weight. A square weight with a
        bias is stored like the others around it: those in the nearest enclosing module, up to the numbered
        block, that has weights whose biases say something. A convolution is judged by its own bias alone: it
        is transposed if the bias is as long as another side than the first.
        """
        if len(self.shape(module + WEIGHT)) > 2:
            bias = self.shape(module + BIAS)
            return len(bias) == 1 and bias[0] != self.shape(module + WEIGHT)[0] and self.has_bias(module)
        own = self._stored_transposed(module)
        if own is not None or not self.has_bias(module):
            return bool(own)
        around = next(
            (self._transposed_in[scope] for scope in _scopes(module) if scope in self._transposed_in), {False}
        )
        return around == {True}

    def _stored_transposed(self, module: str) -> bool | None:
        """Return what a bias says of its own weight; None if it says nothing."""
        weight, bias = self._shapes.get(module + WEIGHT, ()), self._shapes.get(module + BIAS, ())
        if len(weight) != 2 or len(bias) != 1 or weight[0] == weight[1] or bias[0] not in weight:
            return None
        return bias[0] == weight[1]

    def _note_orientation(self, module: str) -> None:
        transposed = self._stored_transposed(module)
        if transposed is not None:
            for scope in _scopes(module):
                self._transposed_in.setdefault(scope, set()).add(transposed)

    def _count_below(self, module: str) -> int:
        """Return the number of tensors whose names begin with the name of a module."""
        return bisect_left(self._names, module + AFTER) - bisect_left(self._names, module + BELOW)

    def _is_adapter(self, module: str) -> bool:
        parts = module.split(".")
        for number, part in enumerate(parts):
            below_lora = number > 0 and "lora" in parts[number - 1]
            partner = PARTNERS.get(part) or (PARTNERS_BELOW_LORA.get(part) if below_lora else None)
            if (
                partner is not None
                and ".".join([*parts[:number], partner, *parts[number + 1 :]]) + WEIGHT in self._shapes
            ):
                return True
        return False


def _shapes(tensors: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes, by name, of such weights and of what else can say something of their modules.

    A checkpoint may have very many other tensors.
    """
    # Many tensors share few shapes.
    kept: dict[tuple[int, ...], tuple[int, ...]] = {}
    shapes = {
        tensor.name: kept.setdefault(tensor.shape, tensor.shape)
        for tensor in tensors
        if tensor.name.endswith(WEIGHT) and len(tensor.shape) > 1
    }
    others = {
        tensor.name: kept.setdefault(tensor.shape, tensor.shape)
        for tensor in tensors
        if tensor.name not in shapes and _concerns(tensor.name, shapes)
    }
    shapes.update(others)
    return shapes


def _concerns(name: str, weights: Collection[str]) -> bool:
    """Return whether a tensor lies below a module of these weights, or is one of an attention."""
    parent, _, last = name.rpartition(".")
    if last in ATTENTION_WEIGHTS:
        return True
    while parent:
        if parent + WEIGHT in weights:
            return True
        parent = parent.rpartition(".")[0]
    return False


def _scopes(module: str) -> Sequence[str]:
    """Return the enclosing modules that lie in a numbered block, the nearest first, the block last."""
    parts = module.split(".")[:-1]
    first = next((number for number, part in enumerate(parts) if part.isdecimal()), len(parts))
    return [".".join(parts[:count]) for count in range(len(parts), first, -1)]
