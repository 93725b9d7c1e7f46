"""The plan of a layer as a frozen value: form, codec and rank of its weight, and what follows from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

from schemas.format.encodings import Encoded
from schemas.format.header import NewTensor
from schemas.format.stacks import Expert
from schemas.format.tensor import DTYPE_BITS, WEIGHT
from schemas.planning import stored
from schemas.planning.codecs import Codec, FloatCodec
from schemas.planning.forms import Chain, Form, StoredMatrix
from schemas.planning.stored import TWO_FACTORS, StoredKind, map_shape, turned
from schemas.rank_rule import RankRule
from schemas.report import NOT_LINEAR, KeptReason

ADAPTER_PREFIX = "base_model.model."


class Tensor(Protocol):
    """The fields of a tensor that planning needs."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def parameters(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The plan for one selected weight.

    Attributes
    ----------
    name
        Name of the module.
    rows, columns
        Outputs and inputs, also where the weight is stored `transposed`. Of a convolution, the columns are
        the inputs times the elements of the kernel.
    dtype
        Storage dtype of the weight in the input; of a quantized one, its dtype once decoded.
    form, codec
        The tensors that replace the weight, and how each of them is stored.
    candidates
        The forms that a budget may choose from, where there are several; until then `form` is the first.
    dense_layout
        Whether the factors are multiplied out and stored in place of the weight.
    rank
        An integer where the shape alone gives it, a rule where the spectrum is needed, None where the weight
        stays dense. It is 0 where the form has no factors.
    reason
        Why the weight stays dense; None otherwise.
    transposed
        Whether the weight is stored as [inputs, outputs].
    calibrated
        Whether there is a Gram matrix of the layer's inputs.
    has_gradients
        Whether there is a Gram matrix of the gradients at the layer's outputs.
    corrects_bias
        Whether the bias makes up for the mean error of the outputs.
    align, min_rank
        Ranks are multiples of `align` and at least `min_rank`.
    importance
        Factor on the squared error under a budget: the `weight` of an override.
    difference
        Whether the difference to a base is factored instead of the weight.
    pair
        The module behind the neurons of the MLP whose neurons are cut, if the weight is one of its members.
    cut_bias
        The dtype of the bias that loses entries together with rows of the weight, if there is one.
    kernel
        The sides of a convolution's kernel; none for a linear layer.
    encoded
        The tensors that store the weight, where it is quantized.
    expert
        The part of a tensor that the weight is, where that holds the weights of several experts.
    """

    name: str
    rows: int
    columns: int
    dtype: str
    form: Form
    codec: Codec
    dense_layout: bool
    rank: int | RankRule | None
    reason: KeptReason | None
    transposed: bool = False
    calibrated: bool = False
    has_gradients: bool = False
    corrects_bias: bool = False
    align: int = 1
    min_rank: int = 1
    importance: float = 1.0
    difference: bool = False
    pair: str | None = None
    cut_bias: str | None = None
    candidates: tuple[Form, ...] = ()
    kernel: tuple[int, ...] = ()
    encoded: Encoded | None = None
    expert: Expert | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the forms that the layer may get."""
        return tuple(form.name for form in self.candidates) or (self.form.name,)

    @property
    def variants(self) -> "tuple[LayerPlan, ...]":
        """The layer with each form that it may get."""
        return tuple(self.with_form(form) for form in self.candidates) or (self,)

    def with_form(self, form: Form) -> "LayerPlan":
        """Return the layer with one form, chosen."""
        return replace(self, form=form, candidates=())

    @property
    def stored_kind(self) -> StoredKind:
        """What its stored tensors depend on, the same for many layers of a model."""
        return StoredKind(
            self.form,
            self.codec,
            self.dtype,
            self.rows,
            self.columns,
            self.dense_layout,
            self.transposed,
            self.in_adapter,
            self.kernel,
            None if self.encoded is None else self.encoded.nbytes,
            self.encoded.parts if self.encoded is not None and self.is_lora else (),
        )

    @property
    def tensor(self) -> str:
        """Name of the weight in the input; no tensor may have it where the weight is quantized."""
        return self.name + WEIGHT

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of the tensors that go with the weight; in place of the first stands what replaces it."""
        if self.encoded is None:
            return (self.tensor,)
        return tuple(tensor.name for tensor in self.encoded.tensors(self.name))

    @property
    def stacks(self) -> list[str]:
        """The names of the tensors whose parts the weight is, if it is that of an expert."""
        return [] if self.expert is None else self.expert.stacks(self.name)

    @property
    def lora_rank(self) -> int:
        """The rank of the pair of an adapter whose product the weight is; 0 for any other weight."""
        return 0 if self.encoded is None else self.encoded.rank

    @property
    def is_lora(self) -> bool:
        """Whether the weight is the product of two matrices of an adapter, which get a lower rank."""
        return self.lora_rank > 0

    @property
    def keeps_bias_name(self) -> bool:
        """Whether the bias, if there is one, stays where it is, since the module stays what it is."""
        return self.dense_layout or self.is_lora

    @property
    def encoding(self) -> str | None:
        """The name of the encoding of a weight that is quantized."""
        return None if self.encoded is None else self.encoded.encoding

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight as stored."""
        return turned(self.map_shape) if self.transposed else self.map_shape

    @property
    def is_linear(self) -> bool:
        """Whether the weight is, by all that is known, that of a plain linear layer."""
        return self.reason not in NOT_LINEAR

    @property
    def is_weighted(self) -> bool:
        """Whether statistics say which errors matter."""
        return self.calibrated or self.has_gradients

    @property
    def weighting(self) -> str:
        """The norm in which the weight is approximated, where it is not that of the Gram matrices alone."""
        return "centered" if self.corrects_bias else ""

    @property
    def decomposed(self) -> str:
        """What is decomposed, and in which norm, where it is not the weight itself in its own."""
        quantizer = self.form.quantizer
        rounded = "" if quantizer is None else f"int{quantizer.bits}-{quantizer.group or 'row'}"
        return " ".join(filter(None, (rounded, self.form.unfolding, self.weighting)))

    @property
    def decomposed_shape(self) -> tuple[int, int]:
        """The sides of the matrix that is decomposed; of a pair, that of its core."""
        if self.is_lora:
            return min(self.rows, self.lora_rank), min(self.columns, self.lora_rank)
        return self.form.matrix_shape(self.map_shape)

    @property
    def norm_of(self) -> str:
        """What of the layer is decomposed whose norm is that of the weight."""
        return self.decomposed if self.kernel else self.weighting

    @property
    def has_loss(self) -> bool:
        """Whether the rise of the loss can be predicted: both Gram matrices are there."""
        return self.calibrated and self.has_gradients

    @property
    def break_even_rank(self) -> int:
        """Largest rank that saves a parameter, or bytes where the weight is rounded, or was before."""
        if self.is_lora:
            return min(self.lora_rank - 1, self.rows, self.columns)
        if self._saves_bytes:
            return max(self._byte_ranks, default=0)
        return stored.break_even_rank(self.form, self.map_shape)

    @property
    def in_adapter(self) -> bool:
        """Whether the factors go into an adapter, which has no place for dense weights."""
        return self.difference and not self.dense_layout

    @property
    def largest_rank(self) -> int:
        """Largest rank that the layer may get: in an adapter the full rank, else the break-even rank."""
        return min(self.map_shape) if self.in_adapter else self.break_even_rank

    @property
    def num_vectors(self) -> int:
        """Number of singular vectors that are enough for any rank of this form, and of any chain."""
        if self.in_adapter:
            return max(1, self.largest_rank)
        others = 0 if self.kernel or self.is_lora else TWO_FACTORS.break_even_rank(self.map_shape)
        return max(1, self.largest_rank, others)

    @property
    def ranks(self) -> range:
        """The ranks that `align` and `min_rank` allow, ascending; an adapter may have `largest_rank` too."""
        if self.is_lora:
            return stored.multiples(range(1, self.break_even_rank + 1), self.align, self.min_rank)
        if self._saves_bytes:
            return stored.multiples(self._byte_ranks, self.align, self.min_rank)
        ranks = stored.parameter_ranks(self.form, self.map_shape, self.align, self.min_rank)
        if not self.in_adapter:
            return ranks
        return range(min(ranks.start, self.largest_rank), self.largest_rank + 1, self.align)

    @property
    def parameters_before(self) -> int:
        """Elements of the dense weight, or of the pair whose product it is."""
        if self.encoded is not None:
            return self.encoded.parameters
        return self.rows * self.columns

    @property
    def bytes_before(self) -> int:
        """Bytes of the dense weight."""
        if self.encoded is not None:
            return self.encoded.nbytes
        return self.parameters_before * DTYPE_BITS[self.dtype] // 8

    @property
    def replaces_bias(self) -> bool:
        """Whether a new bias is stored in place of the old one."""
        return self.corrects_bias or self.cut_bias is not None

    @property
    def bias_entries_cut(self) -> int:
        """Entries that the bias loses together with rows of the weight."""
        return self.rows - self.rank if self.cut_bias is not None and isinstance(self.rank, int) else 0

    @property
    def bias_bytes_cut(self) -> int:
        """Bytes of these entries."""
        return self.bias_entries_cut * DTYPE_BITS[self.cut_bias] // 8 if self.cut_bias is not None else 0

    def rounded_up(self, rank: int) -> int:
        """Return the next multiple of `align`."""
        return -(-rank // self.align) * self.align

    def ratio_rank(self, ratio: float) -> int:
        """Return the largest rank that stores at most this share of the parameters, or 0."""
        if self.is_lora:
            return int(Fraction(repr(ratio)) * self.lora_rank)
        return self.form.ratio_rank(self.map_shape, ratio)

    def parameters_after(self, rank: int | None) -> int:
        """Return the number of elements stored at a rank, or for None without one: dense, or left out."""
        if rank is None or self.dense_layout:
            return 0 if self.in_adapter else self.parameters_before
        return self.factor_parameters(rank)

    def factor_parameters(self, rank: int) -> int:
        """Return the number of elements of the factors at a rank, also if they are multiplied out."""
        return self.form.parameters(self.map_shape, rank)

    def bytes_after(self, rank: int | None) -> int:
        """Return the bytes stored at a rank, or for None without one: dense, or left out of an adapter."""
        if rank is None:
            return 0 if self.in_adapter else self.bytes_before
        if isinstance(self.form, Chain) and isinstance(self.codec, FloatCodec) and not self.is_lora:
            # The same sum in closed form, since a budget needs it at every rank of every layer.
            return self.parameters_after(rank) * DTYPE_BITS[self.codec.dtype] // 8
        return stored.nbytes(self.stored_kind, rank)

    def stored_matrices(self, rank: int) -> tuple[StoredMatrix, ...]:
        """Return the matrices that replace the weight at a rank, in the form's order: input side first."""
        return stored.matrices(self.stored_kind, rank)

    def stored_tensors(self, rank: int) -> tuple[NewTensor, ...]:
        """Return the tensors that store those matrices, in the same order."""
        prefix = ADAPTER_PREFIX if self.in_adapter else ""
        return tuple(
            NewTensor(f"{prefix}{self.name}{below}", dtype, shape)
            for below, dtype, shape in stored.tensors(self.stored_kind, rank)
        )

    @property
    def bias_name(self) -> str:
        """Name of the bias of a weight that is replaced by factors."""
        return f"{self.name}.{self.form.bias}"

    @property
    def _saves_bytes(self) -> bool:
        return self.form.quantizer is not None or (self.encoded is not None and not self.is_lora)

    @property
    def _byte_ranks(self) -> range:
        return stored.byte_ranks(self.stored_kind._replace(dense_layout=False))

    @property
    def map_shape(self) -> tuple[int, ...]:
        """[outputs, inputs], and the sides of a convolution's kernel."""
        return map_shape(self.rows, self.columns, self.kernel)

    @property
    def needs_decoding(self) -> bool:
        """Whether a reader needs the codec to read the stored tensors."""
        return not isinstance(self.codec, FloatCodec)

    @property
    def in_metadata(self) -> bool:
        """Whether a factored layer is listed in the metadata, since a reader cannot take it for dense."""
        return self.pair is None and not self.is_lora and (self.needs_decoding or not self.dense_layout)


# Layers that are factored, by number, each with one form and an integer as its rank.
Chosen = Mapping[int, LayerPlan]


def chosen_rank(layer: LayerPlan) -> int:
    """Return the rank of a chosen layer."""
    assert isinstance(layer.rank, int)
    return layer.rank
