"""worker/layer_cache.py: later jobs reuse decompositions, and results have the same bytes without them."""

import hashlib
import os
import platform
import random
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from schemas.checkpoint import FileInfo
from schemas.format.files import open_checkpoint
from schemas.planning.references import References
from schemas.spec import CompressionSpec
from state.cache.store import DecompositionCache
from worker.pipeline import CompressionRequest
from worker.pipeline import compress as run_pipeline

CPU = torch.device("cpu")
GENEROUS = 1 << 30


class Bench:
    """Runs jobs one after another on one data directory."""

    def __init__(self, directory, source, limit_bytes=GENEROUS):
        self.directory = directory
        self.source = source
        self.store = DecompositionCache.shared(directory, limit_bytes=limit_bytes)

    def request(self, spec, *, cached=True, grams=None, base=None):
        return CompressionRequest(
            checkpoint=open_checkpoint(self.source),
            input_files=(file_report(self.source),),
            spec=CompressionSpec.model_validate(spec),
            spool_dir=self.directory / "spool",
            result_dir=self.directory / "result",
            decompositions=self.store if cached else None,
            references=References(
                calibration=open_checkpoint(grams) if grams else None,
                base=open_checkpoint(base) if base else None,
            ),
            reference_files=References(
                calibration=(file_report(grams),) if grams else None,
                base=(file_report(base),) if base else None,
            ),
        )

    def run(self, spec, *, cached=True, grams=None, base=None, observe=lambda _progress: None, fresh=True):
        if fresh:
            shutil.rmtree(self.directory / "spool", ignore_errors=True)
        shutil.rmtree(self.directory / "result", ignore_errors=True)
        request = self.request(spec, cached=cached, grams=grams, base=base)
        return run_pipeline(request, device=CPU, observe=observe)

    def kept(self):
        return sorted((self.directory / "decompositions").glob("*/*"))

    def forget(self):
        for path in self.kept():
            path.unlink()


def file_report(path):
    content = path.read_bytes()
    return FileInfo(name=path.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def digests(report):
    return [file.sha256 for file in report.output.files]


def origins(report):
    return {layer.decomposition for layer in report.layers}


@pytest.fixture
def weights(gaussian):
    """Layers that use every solver: small and large ones, with slowly and quickly decaying spectra."""
    decay = torch.diag(torch.arange(1, 161, dtype=torch.float32) ** -1.5)
    return {
        "square.weight": gaussian(192, 192),
        "tall.weight": gaussian(300, 140).to(torch.bfloat16),
        "wide.weight": gaussian(150, 260).to(torch.float16),
        "precise.weight": gaussian(150, 170).to(torch.float64),
        "fast.weight": gaussian(200, 160) @ decay,
        "small.weight": gaussian(40, 30),
    }


@pytest.fixture
def make_bench(save, weights, tmp_path):
    """Return a function that makes benches, each with a data directory of its own."""
    source = save(weights)
    count = iter(range(100))

    def make(limit_bytes=GENEROUS):
        directory = tmp_path / f"data-{next(count)}"
        directory.mkdir()
        return Bench(directory, source, limit_bytes)

    return make


@pytest.fixture
def bench(make_bench):
    return make_bench()


SPECS = [
    {"rank": {"ratio": 0.5}},
    {"rank": {"ratio": 0.2}, "dtype": "bfloat16"},
    {"rank": 7},
    {"rank": {"energy": 0.9}},
    {"rank": {"energy": 0.9999}},
    {"rank": {"auto": "hard_threshold"}},
    {"rank": {"auto": "vbmf"}, "method": "pivot"},
    {"rank": {"error": 0.5}},
    {"rank": {"error": 0.01}},
    {"rank": {"budget": 0.4}},
    {"rank": {"ratio": 0.3}, "method": "cur"},
    {"rank": {"error": 0.6}, "method": "cur", "cur": {"storage": "two"}},
    {"rank": {"ratio": 0.3}, "method": "cx", "selector": "leverage"},
    {"rank": {"ratio": 0.3}, "method": "cx", "selector": "cpqr"},
    {"rank": {"ratio": 0.5}, "layout": "dense"},
    # Of these, the cache holds too few vectors after a job of svd.
    {"rank": {"ratio": 0.95}, "method": "pivot"},
    {"rank": {"budget": 0.9}, "method": "pivot"},
]


def test_the_bytes_are_the_same_whatever_earlier_jobs_left(make_bench):
    cold, warm = make_bench(), make_bench()
    expected = {}
    for number, spec in enumerate(SPECS):
        cold.forget()
        expected[number] = digests(cold.run(spec))
    order = [*range(len(SPECS)), *random.Random(3).sample(range(len(SPECS)), len(SPECS))]
    for number in order:
        assert digests(warm.run(SPECS[number])) == expected[number], SPECS[number]


@pytest.mark.parametrize("spec", SPECS)
def test_a_repeated_job_decomposes_nothing(bench, spec):
    first, second = bench.run(spec), bench.run(spec)

    assert origins(first) <= {"computed", None}
    assert origins(second) <= {"cached", None}
    assert digests(first) == digests(second)
    assert [layer.model_copy(update={"seconds": 0, "decomposition": None}) for layer in first.layers] == [
        layer.model_copy(update={"seconds": 0, "decomposition": None}) for layer in second.layers
    ]


def test_another_rank_decomposes_nothing(bench):
    bench.run({"rank": {"ratio": 0.5}})

    for spec in ({"rank": 3}, {"rank": {"ratio": 0.9}}, {"rank": {"ratio": 0.4}, "method": "cur"}):
        assert origins(bench.run(spec)) == {"cached"}


def test_the_same_bytes_under_another_name_are_found(bench, tmp_path):
    bench.run({"rank": 5})
    bench.source = shutil.copy(bench.source, tmp_path / "again.safetensors")

    assert origins(bench.run({"rank": 3})) == {"cached"}


def test_another_tensor_is_not_taken_for_this_one(bench, save, weights):
    bench.run({"rank": 5})
    for name in ("small.weight", "square.weight"):
        weights[name] = weights[name] + 1
    bench.source = save(weights, name="other.safetensors")

    assert origins(bench.run({"rank": 5})) == {"computed"}


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("spoil", [flip, truncate])
def test_a_damaged_entry_is_computed_and_stored_again(bench, spoil):
    expected = digests(bench.run({"rank": {"energy": 0.9}}))
    names = bench.kept()
    for path in names:
        spoil(path)
    again = bench.run({"rank": {"energy": 0.9}})

    assert digests(again) == expected
    assert origins(again) == {"computed"}
    assert bench.kept() == names
    assert origins(bench.run({"rank": {"energy": 0.9}})) == {"cached"}


def test_an_entry_from_another_number_of_threads_is_ignored(bench):
    bench.run({"rank": 5})
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert origins(bench.run({"rank": 5})) == {"computed"}
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names cores of x86")
def test_another_processor_has_another_environment_digest():
    ask = "import torch, worker.layer_cache as w; print(w.environment_digest(torch.device('cpu')).hex())"
    origins = {
        subprocess.run(
            [sys.executable, "-c", ask],
            env=os.environ | {"OPENBLAS_CORETYPE": core},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for core in ("Haswell", "Sandybridge")
    }

    assert len(origins) == 2


@pytest.mark.parametrize("limit_bytes", [0, 100_000])
def test_nothing_is_stored_where_not_all_would_fit(make_bench, limit_bytes):
    bench = make_bench(limit_bytes)

    assert origins(bench.run({"rank": 5})) == {"computed"}
    assert bench.kept() == []
    assert origins(bench.run({"rank": 5})) == {"computed"}


def test_the_stored_bytes_are_about_the_estimate(bench):
    bench.run({"rank": 5})
    total = sum(path.stat().st_size for path in bench.kept())

    assert origins(Bench(bench.directory, bench.source, int(1.05 * total)).run({"rank": 4})) == {"cached"}
    assert origins(Bench(bench.directory, bench.source, int(0.9 * total)).run({"rank": 4})) == {"computed"}


def test_a_budget_gives_the_same_bytes_where_nothing_is_kept_for_other_jobs(bench):
    spec = {"rank": {"budget": 0.5}}
    alone = bench.run(spec, cached=False)

    assert bench.kept() == []
    assert digests(bench.run(spec)) == digests(alone)
    assert digests(bench.run(spec)) == digests(alone)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("stop_after", [1, 3, 7, 9])
def test_an_interrupted_budget_resumes(bench, cached, stop_after):
    spec = {"rank": {"budget": 0.5}}
    expected = digests(bench.run(spec, cached=cached))
    bench.forget()
    shutil.rmtree(bench.directory / "spool")
    begun, again = [], []

    def pull_the_plug(progress):
        begun.append(progress.layer)
        if len(begun) > stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(spec, cached=cached, observe=pull_the_plug)
    report = bench.run(spec, cached=cached, observe=lambda p: again.append(p.layer), fresh=False)

    assert digests(report) == expected
    # Both passes together start each layer at most once more than before the interruption.
    whole = [layer for layer in [*begun[:-1], *again] if layer]
    assert len(whole) <= 2 * len(report.layers)


@pytest.mark.parametrize("warm", [False, True])
def test_progress_never_decreases_over_both_passes(bench, warm):
    seen = []
    if warm:
        bench.run({"rank": 3})
    bench.run({"rank": {"budget": 0.5}}, observe=seen.append)
    fractions, done = [p.fraction for p in seen], [p.layers_done for p in seen]

    assert fractions == sorted(fractions)
    assert all((p.fraction < 1) == (p.layers_done < p.layers_total) for p in seen)
    assert done == sorted(done)
    assert (done[0], done[-1], fractions[-1]) == (0, len(bench.request({"rank": 3}).checkpoint.tensors), 1.0)
    if not warm:
        assert fractions[0] == 0
        # The first pass is most of the work, but it finishes no layer.
        assert any(p.fraction > 0.7 and p.layers_done < 3 for p in seen)


@pytest.fixture
def grams(save, weights, gaussian):
    """Gram matrices for two of the layers."""

    def gram(columns):
        inputs = gaussian(columns, 3 * columns) * torch.arange(1, columns + 1)[:, None]
        return inputs @ inputs.T

    matrices = {f"{name}.gram": gram(weights[f"{name}.weight"].shape[1]) for name in ("square", "tall")}
    return save(matrices, name="grams.safetensors")


def test_a_calibrated_layer_is_not_taken_for_one_that_is_not(bench, grams):
    plain = bench.run({"rank": 9})
    calibrated = bench.run({"rank": 9}, grams=grams)
    again, plain_again = bench.run({"rank": 9}, grams=grams), bench.run({"rank": 9})

    assert {layer.name for layer in calibrated.layers if layer.decomposition == "computed"} == {
        "square",
        "tall",
    }
    assert origins(again) == origins(plain_again) == {"cached"}
    assert digests(again) == digests(calibrated) != digests(plain)
    assert digests(plain_again) == digests(plain)


def test_a_calibrated_budget_gives_the_same_bytes_warm_and_cold(bench, grams):
    spec = {"rank": {"budget": 0.4}}
    cold = bench.run(spec, grams=grams)

    assert digests(bench.run(spec, grams=grams)) == digests(cold)
    assert digests(bench.run(spec, grams=grams, cached=False)) == digests(cold)


def test_a_list_decomposes_no_form_that_cannot_win(make_bench, save, gaussian):
    """Where spectra are flat, two factors alone are never as good as integers, and norms show it."""
    bench = make_bench()
    bench.source = save({f"{name}.weight": gaussian(128, 192) for name in "abcd"}, name="flat.safetensors")
    spec = {
        "method": ["svd", "int8", "int4", "int8+svd", "int4+svd"],
        "rank": {"budget_bytes": bench.source.stat().st_size // 5},
        "dtype": "int8",
    }
    first = bench.run(spec)
    entries = [load_file(path) for path in bench.kept() if path.suffix == ".safetensors"]
    decomposed = [entry for entry in entries if len(entry["basis"])]

    assert {layer.method for layer in first.layers} <= {"int8", "int4", "int8+svd", "int4+svd"}
    # Of each layer W, W - Q₈ and W - Q₄ are measured, but none of the first is decomposed.
    assert len(entries) - len(decomposed) == 3 * len(first.layers)
    assert len(decomposed) <= 2 * len(first.layers)
    assert digests(bench.run(spec)) == digests(first)
    assert len(bench.kept()) == len(entries)
