"""worker/codecs.py: matrices of integers are stored as compressed-tensors stores them, bit for bit."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.planning.codecs import CODECS
from worker.codecs import implementation_of, pack_integers, unpack_integers


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 200), st.sampled_from([3, 4, 8]), st.integers(0, 2**32))
def test_integers_are_packed_as_compressed_tensors_packs_them(rows, columns, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    low = -(1 << (bits - 1))
    values = torch.randint(low, -low, (rows, columns), generator=generator, dtype=torch.int8)
    values[0, 0], values[-1, -1] = low, -low - 1

    packed = pack_integers(values, bits)

    assert packed.dtype == torch.int32
    assert packed.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(packed, pack_to_int32(values, bits))
    assert torch.equal(unpack_from_int32(packed, bits, values.shape), values)
    assert torch.equal(unpack_integers(packed, bits, columns), values)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_a_matrix_in_int8_has_the_tensors_of_its_description_and_an_error_below_half_a_step(dtype, gaussian):
    codec = CODECS["int8"].for_weight(dtype)
    matrix = gaussian(20, 30) * torch.logspace(-2, 2, 20)[:, None]
    matrix[3] = 0
    implementation = implementation_of(codec)

    values, scale = implementation.encode(matrix)

    described = [(tensor.dtype, tensor.shape) for tensor in codec.tensors("x", (20, 30))]
    names = {torch.int8: "I8", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    assert described == [(names[tensor.dtype], tensor.shape) for tensor in (values, scale)]
    error = (implementation.decode((values, scale)).float() - matrix).abs()
    # Of 127 steps, the dtype of the scales may add one in rounding the largest entries.
    assert bool((error <= (0.5 if dtype in {"F32", "F64"} else 1.5) * 1.01 * scale.float()).all())
    negative, same = implementation.encode(-matrix)
    assert torch.equal(negative, -values)
    assert torch.equal(scale, same)
