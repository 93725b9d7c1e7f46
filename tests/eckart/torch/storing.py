"""Files of every form, made by numpy and by compressed-tensors, and the weights that they stand for."""

from __future__ import annotations

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

GROUP, RANK = 32, 3
BITS = {"int8": 8, "int4": 4, "int3": 3}
METHODS = ("svd", "cur", "pivot", *BITS, *(f"{name}+svd" for name in BITS))
# Each method with factors, with those as they are and as integers.
FORMS = [(method, codec) for method in METHODS for codec in (None, "int8") if method not in BITS or not codec]


class Stored:
    """A layer in a form: its tensors and its entry, and the weight [outputs, inputs] in float64."""

    def __init__(self, name, method, codec=None, *, shape=(40, 64), transposed=False, dtype=torch.float32):
        self.name, self.codec, self.transposed, self.dtype = name, codec, transposed, dtype
        self.random = np.random.default_rng(sum(map(ord, f"{name}{method}")))
        self.tensors = {}
        base, _, rest = method.partition("+")
        rank = 0 if base in BITS and not rest else RANK
        self.entry = {
            "method": method,
            "rank": rank,
            "shape": list(shape[::-1] if transposed else shape),
            "dtype": {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype],
        }
        self.entry |= {"codec": codec} if codec else {}
        self.entry |= {"transposed": True} if transposed else {}
        if codec and base not in BITS:
            self.entry |= {"weight_dtype": self.entry["dtype"], "dtype": "I8"}
        self.bias = f"{name}.bias"
        self.weight = self._weight(method, shape, rank)

    def _weight(self, method, shape, rank):
        (outputs, inputs), base = shape, method.partition("+")[0]
        if base in BITS:
            weight = self._integers(base, shape)
            return weight + self._chain(inputs, rank, outputs) if rank else weight
        if method == "pivot":
            return self._pivot(inputs, rank, outputs)
        ranks = [rank] * (2 if method == "cur" else 1)
        self.bias = f"{self.name}.{len(ranks)}.bias"
        return self._chain(inputs, *ranks, outputs)

    def _integers(self, base, shape):
        bits, (outputs, inputs) = BITS[base], shape
        most = 2 ** (bits - 1) - 1
        integers = self.random.integers(-most - 1, most + 1, shape, dtype=np.int8)
        groups = 1 if bits == 8 else inputs // GROUP
        scale = self._stored("weight_scale", self.random.uniform(0.1, 0.4, (outputs, groups)) / most)
        self.entry |= {"bits": bits} | ({} if bits == 8 else {"group": GROUP})
        if bits == 8:
            self.tensors[f"{self.name}.weight"] = torch.from_numpy(integers)
        else:
            packed = pack_to_int32(torch.from_numpy(integers), bits)
            self.tensors[f"{self.name}.weight_packed"] = packed
            self.tensors[f"{self.name}.weight_shape"] = torch.tensor(shape)
        return integers * np.repeat(scale, inputs // groups, axis=1)

    def _chain(self, *sizes):
        """Store factors; return their product."""
        product = np.eye(sizes[0])
        for number, shape in enumerate(zip(sizes[1:], sizes[:-1], strict=True)):
            product = self._factor(number, shape) @ product
        return product

    def _factor(self, number, shape):
        stored_shape = shape[::-1] if self.transposed else shape
        matrix = self.random.standard_normal(stored_shape) / 4
        name = f"{number}.weight"
        if self.codec:
            scale = self._stored(f"{name}_scale", np.abs(matrix).max(1, keepdims=True) / 127)
            integers = np.clip(np.rint(matrix / scale), -127, 127).astype(np.int8)
            self.tensors[f"{self.name}.{name}"] = torch.from_numpy(integers)
            matrix = integers * scale
        else:
            matrix = self._stored(name, matrix)
        return matrix.T if self.transposed else matrix

    def _pivot(self, inputs, rank, outputs):
        rows = np.sort(self.random.permutation(outputs)[:rank])
        self.tensors[f"{self.name}.rows"] = torch.from_numpy(rows.astype(np.int32))
        weight = np.empty((outputs, inputs))
        weight[rows] = self._factor(0, (rank, inputs))
        weight[np.setdiff1d(np.arange(outputs), rows)] = (
            self._factor(1, (outputs - rank, rank)) @ weight[rows]
        )
        return weight

    def _stored(self, name, matrix):
        """Store a floating tensor, and return what it holds once rounded."""
        tensor = torch.from_numpy(np.asarray(matrix)).to(self.dtype)
        self.tensors[f"{self.name}.{name}"] = tensor
        return tensor.double().numpy()

    @property
    def dense(self):
        """The weight as a dense checkpoint has it, in float64."""
        return torch.from_numpy(np.ascontiguousarray(self.weight.T if self.transposed else self.weight))
