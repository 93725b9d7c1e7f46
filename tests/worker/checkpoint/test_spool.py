"""worker/checkpoint/spool.py: finished layers come back whole or not at all, also after a kill."""

import multiprocessing
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch

from schemas.format.header import NewTensor
from worker.checkpoint.spool import DamagedLayer, LayerSpool
from worker.checkpoint.writer import CheckpointWriter

OUTCOME = '{"rank": 2, "name": "é"}'
LEFT, RIGHT = torch.arange(6.0).reshape(3, 2), torch.arange(8.0).reshape(2, 4)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "layers"


@pytest.fixture
def spool(directory):
    with LayerSpool(directory) as spool:
        yield spool


def load(spool, number, path):
    """Copy the factors of a layer into a checkpoint, and load them."""
    factors = spool.factors(number)
    new_tensors = [NewTensor(str(at), factor.dtype, factor.shape) for at, factor in enumerate(factors)]
    with CheckpointWriter(path, new_tensors) as writer:
        while (following := writer.next) is not None:
            factor = factors[int(following.name)]
            writer.copy(factor, spool.chunks(factor))
    return list(dict(sorted(safetensors.torch.load_file(path).items())).values())


def found(directory, numbers=range(10)):
    """Return the numbers of the layers that a new process finds."""
    with LayerSpool(directory) as spool:
        return [number for number in numbers if spool.get(number) is not None]


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_layer_comes_back_as_it_was_put(spool, directory, tmp_path, dtype, reopen):
    spool.put(12, OUTCOME, (RIGHT.to(dtype), LEFT.to(dtype)))
    spool.put(3, "{}", (RIGHT.T.to(dtype),))
    with LayerSpool(directory) as again:
        source = again if reopen else spool
        assert source.get(12) == OUTCOME
        right, left = load(source, 12, tmp_path / "12.safetensors")
        (transposed,) = load(source, 3, tmp_path / "3.safetensors")

    assert torch.equal(left, LEFT.to(dtype))
    assert torch.equal(right, RIGHT.to(dtype))
    assert torch.equal(transposed, RIGHT.T.to(dtype))


def test_a_factor_of_many_pieces_comes_back(spool, tmp_path):
    factor = torch.arange(3.0 * (1 << 20) + 1)
    spool.put(0, OUTCOME, (factor, LEFT))

    assert spool.get(0) == OUTCOME
    assert torch.equal(load(spool, 0, tmp_path / "out.safetensors")[0], factor)


def test_a_layer_that_stays_dense_has_an_outcome_and_no_factors(spool, directory):
    spool.put(3, OUTCOME, ())

    assert (spool.get(3), spool.factors(3)) == (OUTCOME, ())
    assert found(directory) == [3]


def test_a_layer_that_was_not_put_is_missing(spool):
    assert spool.get(0) is None
    spool.put(1, OUTCOME, (LEFT,))
    assert spool.get(0) is None


def test_a_layer_put_again_replaces_the_first(spool, directory):
    spool.put(0, "{}", (LEFT,))
    spool.put(0, OUTCOME, ())
    assert spool.get(0) == OUTCOME
    with LayerSpool(directory) as later:
        assert later.get(0) == OUTCOME
        later.put(0, "[]", ())
    with LayerSpool(directory) as last:
        assert last.get(0) == "[]"


def test_layers_that_several_threads_put_all_come_back(spool, directory):
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(lambda number: spool.put(number, str(number), (torch.full((50,), number),)), range(200))
        )

    with LayerSpool(directory) as again:
        assert [again.get(number) for number in range(200)] == [str(number) for number in range(200)]


def put_until_killed(directory, pipe):
    with LayerSpool(directory) as spool:
        for number in range(1_000_000):
            spool.put(number, OUTCOME, (LEFT, torch.zeros(10_000)))
            pipe.send(number)


def test_what_was_put_outlives_a_kill(directory):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=put_until_killed, args=(directory, sender))
    process.start()
    done = [receiver.recv() for _ in range(20)][-1]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while receiver.poll():
        done = receiver.recv()

    assert found(directory, range(done + 1)) == list(range(done + 1))
    # At most the one that it was putting, whole.
    assert len(found(directory, range(done + 10))) <= done + 2


def segment_of(directory):
    (path,) = directory.iterdir()
    return path


def test_a_layer_that_is_cut_off_anywhere_is_missing_and_those_before_are_not(directory):
    with LayerSpool(directory) as spool:
        spool.put(0, OUTCOME, (LEFT,))
        whole = segment_of(directory).stat().st_size
        spool.put(1, OUTCOME, (RIGHT,))
    path = segment_of(directory)
    raw = path.read_bytes()
    for length in range(whole, len(raw)):
        path.write_bytes(raw[:length])
        assert found(directory) == [0], length


def test_after_a_cut_the_next_process_goes_on(directory):
    with LayerSpool(directory) as spool:
        spool.put(0, OUTCOME, (LEFT,))
        spool.put(1, OUTCOME, (LEFT,))
    path = segment_of(directory)
    path.write_bytes(path.read_bytes()[:-1])
    with LayerSpool(directory) as spool:
        spool.put(1, OUTCOME, (RIGHT,))
        spool.put(2, OUTCOME, (RIGHT,))

    assert found(directory) == [0, 1, 2]


def test_no_byte_of_a_layer_can_change_unnoticed(directory):
    with LayerSpool(directory) as spool:
        spool.put(0, OUTCOME, (LEFT[:1], RIGHT[:1, :1].double()))
        spool.put(1, OUTCOME, (LEFT,))
    path = segment_of(directory)
    whole = path.read_bytes()
    first = len(whole) // 2
    for at in range(len(whole)):
        raw = bytearray(whole)
        raw[at] ^= 1 << at % 8
        path.write_bytes(raw)
        assert len(found(directory)) < 2, at
    path.write_bytes(whole[: first // 4] + bytes(len(whole) - first // 4))
    assert found(directory) == []
    path.write_bytes(whole)
    assert found(directory) == [0, 1]


def test_damaged_data_cost_only_their_own_layer(directory):
    with LayerSpool(directory) as spool:
        for number in range(3):
            spool.put(number, OUTCOME, (torch.full((4,), 7.0 + number),))
    path = segment_of(directory)
    raw = path.read_bytes()
    data = torch.full((4,), 8.0).numpy().tobytes()
    assert raw.count(data) == 1
    path.write_bytes(raw.replace(data, bytes(16)))

    assert found(directory) == [0, 2]


def test_a_layer_that_is_damaged_after_it_was_found_is_not_copied(directory, tmp_path):
    with LayerSpool(directory) as spool:
        spool.put(0, OUTCOME, (LEFT,))
        assert spool.get(0) == OUTCOME
        with segment_of(directory).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")
        with pytest.raises(DamagedLayer):
            load(spool, 0, tmp_path / "out.safetensors")

    assert not (tmp_path / "out.safetensors").exists()


def test_a_process_that_writes_after_its_time_does_no_harm(directory):
    with LayerSpool(directory) as old:
        old.put(0, "old", (LEFT,))
        with LayerSpool(directory) as new:
            new.put(1, "new", (LEFT,))
            old.put(1, "old", (RIGHT,))
            new.put(2, "new", (LEFT,))
            assert [new.get(number) for number in range(3)] == ["old", "new", "new"]

    assert found(directory) == [0, 1, 2]


def test_what_could_not_be_written_to_its_end_is_overwritten(directory):
    with LayerSpool(directory) as spool:
        spool.put(0, OUTCOME, (LEFT,))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Past its limit of size a file takes no more bytes, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                spool.put(1, OUTCOME, (torch.zeros(1000),))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert segment_of(directory).stat().st_size == 1000
        spool.put(2, OUTCOME, (LEFT,))

    assert found(directory) == [0, 2]


def test_files_of_another_kind_are_left_alone(directory):
    directory.mkdir()
    (directory / "layer-00000.safetensors").write_bytes(b"of an earlier release")
    (directory / "decompositions").mkdir()

    assert found(directory) == []


def test_the_folder_of_a_deleted_job_does_not_come_back(tmp_path):
    job = tmp_path / "job"
    with LayerSpool(job / "spool" / "work") as spool, pytest.raises(FileNotFoundError):
        spool.put(0, OUTCOME, (LEFT,))

    assert not job.exists()
