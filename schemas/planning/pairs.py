"""The MLPs whose neurons a spec cuts: found by names, checked by shapes, planned as layers of one pair."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from schemas.format.errors import listed, quoted
from schemas.format.tensor import BIAS, FLOAT_DTYPES, WEIGHT
from schemas.pair import Pair
from schemas.planning.codecs import KEEP, codec_for
from schemas.planning.forms.neurons import NeuronColumns, NeuronRows
from schemas.planning.layer import LayerPlan, Tensor
from schemas.planning.layers import Plan
from schemas.planning.modules import Modules
from schemas.planning.patterns import Patterns
from schemas.planning.selection import is_float_weight
from schemas.problem import SpecError
from schemas.rank_rule import RankRule
from schemas.report import KEPT_REASONS
from schemas.spec import CompressionSpec

POINTER = "/pairs"
LEAVE_OUT = "Name the other MLPs in `pairs`, without it."
# The names of `up`, `gate` and `down` within one module, where single entries alone pass between them.
KNOWN_NAMES: tuple[tuple[str, str | None, str], ...] = (
    ("up_proj", "gate_proj", "down_proj"),  # Llama, Mistral, Qwen, Gemma, and their experts
    ("up_proj", None, "down_proj"),  # Nemotron
    ("w3", "w1", "w2"),  # Mixtral's experts, Llama as Meta stores it
    ("wi_0", "wi_1", "wo"),  # T5 v1.1
    ("wi", None, "wo"),  # T5
    ("intermediate.dense", None, "output.dense"),  # BERT, ViT
    ("c_fc", None, "c_proj"),  # GPT-2
    ("fc1", None, "fc2"),  # Phi, OPT, CLIP, Whisper, BART
    ("linear1", None, "linear2"),  # torch.nn.TransformerEncoderLayer
    ("lin1", None, "lin2"),  # DistilBERT
    ("dense_h_to_4h", None, "dense_4h_to_h"),  # GPT-NeoX, BLOOM, Falcon
    ("fc_in", None, "fc_out"),  # GPT-J
    ("intermediate_dense", None, "output_dense"),  # Wav2Vec2
)
# A norm between the weights takes all neurons together.
NORMS = Patterns(["last:*norm*", "last:ln*"])


@dataclass(frozen=True, slots=True)
class Mlp:
    """The names of the weights of one MLP, the share of its neurons that stays, and its place in the spec."""

    up: str
    gate: str | None
    down: str
    share: float = 1.0
    pointer: str = POINTER

    @property
    def members(self) -> tuple[str, ...]:
        """All weights: the one behind the neurons last."""
        return tuple(name for name in (self.up, self.gate, self.down) if name is not None)


def known_mlps(modules: Iterable[str], share: float = 1.0) -> Iterator[Mlp]:
    """Yield the MLPs that well-known names tell, in the order of the modules."""
    ordered = list(modules)
    known = set(ordered)
    for module in ordered:
        for up, gate, down in KNOWN_NAMES:
            parent = module.removesuffix(down)
            if parent == module or parent[-1:] not in ("", "."):
                continue
            names = parent + up, None if gate is None else parent + gate
            if all(name is None or name in known for name in names):
                yield Mlp(*names, module, share)
                break


class PairFinder:
    """Finds the MLPs of a spec among the tensors of a checkpoint.

    `is_transposed` says of a module whether its weight is stored as [inputs, outputs].
    """

    def __init__(
        self,
        spec: CompressionSpec,
        tensors: Iterable[Tensor],
        modules: Modules,
        is_transposed: Callable[[str], bool],
    ) -> None:
        self._spec, self._modules, self._is_transposed = spec, modules, is_transposed
        self._tensors = {} if spec.pairs is None else {tensor.name: tensor for tensor in tensors}
        self._norms: dict[tuple[str, int], str] = {}
        for name, tensor in self._tensors.items():
            module = name.removesuffix(WEIGHT)
            if len(tensor.shape) == 1 and module != name and NORMS.fit(module):
                self._norms[module.rpartition(".")[0], tensor.shape[0]] = module

    def find(self) -> tuple[tuple[LayerPlan, ...], tuple[str, ...]]:
        """Return the plans of all members, and warnings of MLPs that are left out.

        Raises
        ------
        SpecError
            If an MLP that the spec names cannot be cut, or none is found at all.
        """
        if self._spec.pairs is None:
            return (), ()
        if self._spec.pairs == "neurons":
            return self._known()
        mlps = [mlp for number, pair in enumerate(self._spec.pairs) for mlp in self._named(pair, number)]
        for mlp in mlps:
            if (fault := self._fault(mlp)) is not None:
                raise SpecError(mlp.pointer, fault)
        self._check_disjoint(mlps)
        return tuple(layer for mlp in mlps for layer in self._planned(mlp)), ()

    def _known(self) -> tuple[tuple[LayerPlan, ...], tuple[str, ...]]:
        faults, layers = [], []
        for mlp in known_mlps(self._weights(), _ratio(self._spec)):
            fault = self._fault(mlp)
            if fault is None:
                layers += self._planned(mlp)
            else:
                faults.append(fault)
        if not layers:
            why = f" {faults[0]}" if faults else ""
            raise SpecError(
                POINTER,
                "No MLP was found by the names that are known, such as up_proj, gate_proj and down_proj, or "
                f"intermediate.dense and output.dense.{why} Name the weights before and behind the neurons: "
                '[{"up": "…", "down": "…"}].',
            )
        self._check_disjoint([_mlp_of(group) for group in pairs_of(layers).values()])
        return tuple(layers), tuple(f"pairs: left out: {fault}" for fault in faults)

    def _weights(self) -> Iterator[str]:
        return (name.removesuffix(WEIGHT) for name in self._tensors if name.endswith(WEIGHT))

    def _named(self, pair: Pair, number: int) -> list[Mlp]:
        """Return the MLPs of one entry of the spec."""
        pointer = f"{POINTER}/{number}"
        share = _ratio(self._spec) if pair.share is None else pair.share
        found = []
        for module in self._weights():
            if (texts := captured(pair.up, module)) is not None:
                gate = None if pair.gate is None else filled(pair.gate, texts)
                found.append(Mlp(module, gate, filled(pair.down, texts), share, pointer))
        if not found:
            raise SpecError(f"{pointer}/up", f"No module with a weight has the name {quoted(pair.up)}.")
        return found

    def _check_disjoint(self, mlps: Sequence[Mlp]) -> None:
        seen: dict[str, Mlp] = {}
        for mlp in mlps:
            for name in mlp.members:
                if name in seen:
                    raise SpecError(
                        mlp.pointer,
                        f"{quoted(name)} would be in two pairs, with {quoted(seen[name].down)} and with "
                        f"{quoted(mlp.down)}. Name it once.",
                    )
                seen[name] = mlp

    def _fault(self, mlp: Mlp) -> str | None:
        """Return why an MLP cannot be cut and what to do, or None."""
        for name in mlp.members:
            tensor = self._tensors.get(name + WEIGHT)
            if tensor is None:
                return f"{quoted(mlp.up)} has no {quoted(name)} beside it. Correct the name."
            if not is_float_weight(tensor) or len(tensor.shape) != 2:
                shape = f"{tensor.dtype} {list(tensor.shape)}"
                return f"{quoted(name)} is {shape}, and no matrix of floats. {LEAVE_OUT}"
            if (reason := self._modules.reason_to_keep(name)) is not None:
                return f"{quoted(name)} cannot be cut ({reason}): {KEPT_REASONS[reason]} {LEAVE_OUT}"
        return self._misfit(mlp) or self._norm_between(mlp)

    def _misfit(self, mlp: Mlp) -> str | None:
        up, *gate, down = (self._shape(name) for name in mlp.members)
        if any(shape[0] != up[0] for shape in gate) or down[1] != up[0]:
            shapes = ", ".join(f"{quoted(name)} {list(self._shape(name))}" for name in mlp.members)
            return (
                f"These do not fit as [outputs, inputs]: {shapes}. The last must have as many inputs as the "
                "others have outputs. Correct the names, or name what is stored as [inputs, outputs] in "
                "`transposed`."
            )
        for name in mlp.members:
            bias = self._tensors.get(name + BIAS)
            if bias is not None and (bias.shape != self._shape(name)[:1] or bias.dtype not in FLOAT_DTYPES):
                return f"The bias of {quoted(name)} is {bias.dtype} {list(bias.shape)}. {LEAVE_OUT}"
            if bias is not None and self._modules.is_shared(bias.name):
                return f"The bias of {quoted(name)} is another module's too. {LEAVE_OUT}"
        return None

    def _norm_between(self, mlp: Mlp) -> str | None:
        """Find a norm over the neurons beside the weights: it takes them together, so none may go."""
        neurons = self._shape(mlp.up)[0]
        beside_up, beside_down = (name.rpartition(".")[0] for name in (mlp.up, mlp.down))
        if beside_up != beside_down and (norm := self._norms.get((beside_up, neurons))) is not None:
            return f"{quoted(norm)} is a norm over the neurons of {quoted(mlp.up)}. {LEAVE_OUT}"
        if neurons in {self._shape(mlp.down)[0], self._shape(mlp.up)[1]}:
            return None
        norm = self._norms.get((beside_down, neurons))
        if norm is None:
            return None
        return f"{quoted(norm)} is a norm over the neurons of {quoted(mlp.down)}. {LEAVE_OUT}"

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight as [outputs, inputs]."""
        shape = self._tensors[name + WEIGHT].shape
        return shape[::-1] if self._is_transposed(name) else shape

    def _planned(self, mlp: Mlp) -> list[LayerPlan]:
        neurons = self._shape(mlp.up)[0]
        kept = kept_neurons(neurons, mlp.share, self._spec.align)
        layers = []
        for name in mlp.members:
            tensor, (rows, columns) = self._tensors[name + WEIGHT], self._shape(name)
            bias = self._tensors.get(name + BIAS)
            is_down = name == mlp.down
            layers.append(
                LayerPlan(
                    name=name,
                    rows=rows,
                    columns=columns,
                    dtype=tensor.dtype,
                    form=NeuronColumns() if is_down else NeuronRows(),
                    codec=codec_for(KEEP, tensor.dtype),
                    dense_layout=False,
                    rank=kept if kept < neurons else None,
                    reason=None if kept < neurons else "no_saving",
                    transposed=self._is_transposed(name),
                    align=self._spec.align,
                    pair=mlp.down,
                    cut_bias=None if is_down or bias is None else bias.dtype,
                )
            )
        return layers


def kept_neurons(neurons: int, share: float, align: int) -> int:
    """Return how many neurons stay: a multiple of `align` of at least one, or all of them."""
    # The share is the decimal in the spec, not the nearest double.
    count = math.floor(Fraction(repr(share)) * neurons)
    return min(neurons, max(align, count - count % align))


def pairs_of(layers: Iterable[LayerPlan]) -> dict[str, tuple[LayerPlan, ...]]:
    """Return the members of each pair, the one behind the neurons last, by its name."""
    groups: dict[str, list[LayerPlan]] = {}
    for layer in layers:
        if layer.pair is not None:
            groups.setdefault(layer.pair, []).append(layer)
    return {
        pair: tuple(sorted(group, key=lambda layer: layer.name == pair)) for pair, group in groups.items()
    }


def check_neuron_grams(plan: Plan) -> None:
    """Refuse pairs without a Gram matrix of the neurons, since the weight behind them could not be fitted."""
    if not any(layer.pair is not None for layer, _ in plan.counted()):
        return
    missing = [layer.name for layer in plan.layers if layer.name == layer.pair and not layer.calibrated]
    if missing:
        raise SpecError(
            POINTER,
            f"Without a Gram matrix of the inputs of {listed(missing)} nothing can make up for the neurons "
            "that go. Run eckart.calibrate on the model and name the file as `calibration`.",
        )


def captured(pattern: str, name: str) -> tuple[str, ...] | None:
    """Return what each `*` of a pattern stands for in a name, first ones as short as possible, or None."""
    first, *rest = pattern.split("*")
    if not name.startswith(first):
        return None
    if not rest:
        return () if name == first else None
    *middle, last = rest
    at, texts = len(first), []
    for part in middle:
        found = name.find(part, at)
        if found < 0:
            return None
        texts.append(name[at:found])
        at = found + len(part)
    end = len(name) - len(last)
    if end < at or not name.endswith(last):
        return None
    return (*texts, name[at:end])


def filled(pattern: str, texts: Sequence[str]) -> str:
    """Return a pattern with a text in place of each `*`."""
    first, *rest = pattern.split("*")
    return first + "".join(text + part for text, part in zip(texts, rest, strict=True))


def _ratio(spec: CompressionSpec) -> float:
    """Return the ratio of a spec; a pair without its own share is refused where there is none."""
    ratio = spec.rank.ratio if isinstance(spec.rank, RankRule) else None
    return 1.0 if ratio is None else ratio


def _mlp_of(group: Sequence[LayerPlan]) -> Mlp:
    up, *gate, down = (layer.name for layer in group)
    return Mlp(up, gate[0] if gate else None, down)
