"""worker/checkpoint/spool.py: finished layers come back whole or not at all."""

import pytest
import safetensors.torch
import torch

from schemas.format.header import NewTensor
from worker.checkpoint.spool import LayerSpool
from worker.checkpoint.writer import CheckpointWriter

OUTCOME = '{"rank": 2, "name": "é"}'
LEFT, RIGHT = torch.arange(6.0).reshape(3, 2), torch.arange(8.0).reshape(2, 4)


def names_in(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def spool(tmp_path):
    return LayerSpool(tmp_path / "layers")


def test_a_layer_comes_back_as_it_was_put(spool, tmp_path):
    spool.put(12, OUTCOME, (RIGHT, LEFT))
    layer = spool.get(12)
    assert layer.outcome_json == OUTCOME
    assert names_in(tmp_path / "layers") == ["layer-00012.safetensors"]
    with layer.open() as reader:
        assert [info.shape for info in layer.factors] == [(2, 4), (3, 2)]
        assert [reader.read(info.name).tolist() for info in layer.factors] == [RIGHT.tolist(), LEFT.tolist()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_factors_are_copied_into_a_checkpoint(spool, tmp_path, dtype):
    spool.put(0, OUTCOME, (RIGHT.to(dtype), LEFT.to(dtype)))
    layer = spool.get(0)
    path = tmp_path / "model.safetensors"
    new_tensors = [
        NewTensor(f"X.{at}.weight", info.dtype, info.shape) for at, info in enumerate(layer.factors)
    ]
    with layer.open() as reader, CheckpointWriter(path, new_tensors) as writer:
        for info in layer.factors:
            writer.copy(reader, info)
    loaded = safetensors.torch.load_file(path)
    assert torch.equal(loaded["X.0.weight"], RIGHT.to(dtype))
    assert torch.equal(loaded["X.1.weight"], LEFT.to(dtype))


def test_a_transposed_factor_is_put_in_its_own_order(spool):
    spool.put(0, OUTCOME, (RIGHT.T,))
    layer = spool.get(0)
    with layer.open() as reader:
        assert torch.equal(reader.read("0"), RIGHT.T)


def test_a_layer_that_stays_dense_has_an_outcome_and_no_factors(spool):
    spool.put(3, OUTCOME, ())
    layer = spool.get(3)
    assert (layer.outcome_json, layer.factors) == (OUTCOME, ())


def test_a_layer_that_was_not_put_is_missing(spool):
    assert spool.get(0) is None
    spool.put(1, OUTCOME, (LEFT,))
    assert spool.get(0) is None


def test_a_layer_put_again_replaces_the_first(spool):
    spool.put(0, "{}", (LEFT,))
    spool.put(0, OUTCOME, ())
    assert spool.get(0).outcome_json == OUTCOME


def cut(raw: bytes) -> bytes:
    return raw[:-1]


def flip_data(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def zero_data(raw: bytes) -> bytes:
    return raw[:-24] + bytes(24)


def flip_header(raw: bytes) -> bytes:
    return raw[:9] + b"#" + raw[10:]


def drop_outcome(raw: bytes) -> bytes:
    return raw.replace(b'"outcome"', b'"outcame"')


@pytest.mark.parametrize("damage", [cut, flip_data, zero_data, flip_header, drop_outcome, lambda _: b""])
def test_a_damaged_layer_is_missing(spool, tmp_path, damage):
    spool.put(0, OUTCOME, (LEFT,))
    path = tmp_path / "layers" / "layer-00000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    assert spool.get(0) is None


def test_no_byte_of_a_layer_can_change_unnoticed(spool, tmp_path):
    spool.put(0, OUTCOME, (LEFT[:1], RIGHT[:1, :1].double()))
    path = tmp_path / "layers" / "layer-00000.safetensors"
    whole = path.read_bytes()
    for at in range(len(whole)):
        raw = bytearray(whole)
        raw[at] ^= 1 << at % 8
        path.write_bytes(raw)
        assert spool.get(0) is None, at
    path.write_bytes(whole)
    assert spool.get(0).outcome_json == OUTCOME


def test_a_half_written_layer_is_missing(spool, tmp_path):
    spool.put(0, OUTCOME, (LEFT,))
    path = tmp_path / "layers" / "layer-00000.safetensors"
    path.rename(path.with_name("layer-00000.safetensors.part"))
    assert spool.get(0) is None
