"""The numerics on a GPU: as on the CPU for every form, codec and rank rule, and the same bytes each time.

One case of each runs on a fake device, on any machine: it finds tensors of two devices that meet.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.planning.references import References
from schemas.spec import CompressionSpec
from tests.worker.fake_gpu import fake_gpu
from worker.device import choose_device
from worker.executor import AHEAD_OF_GPU
from worker.local import compress_local
from worker.lowrank import SELECTORS
from worker.lowrank.lapack import LARGEST_JACOBI, leading_eigenpairs
from worker.lowrank.solvers import GRAM_ROUNDING

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
# Longer than what the direct solvers take, and a multiple of a group.
ROWS, COLUMNS = 160, 192
RULES = {
    "energy": {"rank": {"energy": 0.8}},
    "error": {"rank": {"error": 0.3}},
    "threshold": {"rank": {"auto": "hard_threshold"}},
    "bayes": {"rank": {"auto": "vbmf"}},
}
FORMS = {
    "svd": {"method": "svd"},
    "pivot": {"method": "pivot"},
    **{f"cx-{each}": {"method": "cx", "selector": each} for each in SELECTORS},
    **{f"cur-{each}": {"method": "cur", "selector": each} for each in ("qdeim", "osinsky")},
    "cur-two": {"method": "cur", "cur": {"storage": "two"}},
    **{name: {"method": name} for name in ("int8", "int4", "int3")},
    **{f"{name}-svd": {"method": f"{name}+svd", "rank": 12} for name in ("int8", "int4", "int3")},
}
ALIKE = ("threshold", "cx-qdeim", "cx-linear_time", "cur-osinsky", "int3", "int3-svd", "int8-svd")
# Krylov spaces, and pivots by blocks.
LARGE_ROWS, LARGE_COLUMNS, LARGE_RANK = 1100, 1040, 256
LARGE = {name: FORMS[name] for name in ("svd", "pivot", "cx-cpqr", "cx-osinsky", "cur-qdeim", "int4")}


def decaying(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    count = min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(side, count, generator=generator, dtype=torch.float64)).Q
        for side in (rows, columns)
    )
    return left * torch.exp(-8 * torch.arange(count) / count) @ right.mT


def write(folder, layers, dtype, *, rows=ROWS, columns=COLUMNS):
    """Write a weight and a bias for each layer, and the statistics of all; return both files."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(600, columns, generator=generator) * torch.linspace(2, 0.3, columns) + 0.2
    g = torch.randn(600, rows, generator=generator) * torch.linspace(0.5, 2, rows)
    weights, statistics = {}, {}
    for number, name in enumerate(layers):
        weights[f"{name}.weight"] = decaying(rows, columns, number).to(dtype)
        weights[f"{name}.bias"] = torch.ones(rows, dtype=dtype)
        own = {"gram": x.mT @ x, "grad_gram": g.mT @ g, "mean": x.mean(0), "count": torch.tensor([600.0])}
        statistics |= {f"{name}.{kind}": tensor.clone() for kind, tensor in own.items()}
    save_file(weights, folder / "model.safetensors")
    save_file(statistics, folder / "statistics.safetensors")
    return folder / "model.safetensors", folder / "statistics.safetensors"


def run(source, target, device, spec, calibration=None):
    """Compress; return the report and all tensors."""
    report = compress_local(
        source,
        target,
        CompressionSpec.model_validate(spec),
        references=References(calibration, None),
        device=device,
        observe=lambda _progress: None,
    )
    return report, load_file(next(target.glob("*.safetensors")))


def spec_of(layers, rank=24, **more):
    overrides = [{"match": name} | fields for name, fields in layers.items()]
    return {"rank": rank, "overrides": overrides} | more


def assert_agree(expected, found, *, within=1e-4):
    pairs = list(zip(expected.layers, found.layers, strict=True))
    assert pairs
    for one, other in pairs:
        assert (one.name, one.rank, one.reason) == (other.name, other.rank, other.reason)
        for field in ("relative_error", "optimal_error", "weighted_error", "predicted_loss"):
            values = [getattr(each, field) for each in (one, other)]
            close = values[0] == values[1] or values[1] == pytest.approx(values[0], rel=within, abs=1e-7)
            assert close, (one.name, field, values)


def test_the_fake_device_refuses_what_a_gpu_refuses():
    with fake_gpu() as device:
        tensor = torch.ones(2).to(device)
        with pytest.raises(RuntimeError, match="same device"):
            tensor + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            tensor.numpy()
        assert (tensor + 1).device == device
        assert (tensor + 1).cpu().tolist() == [2, 2]


@contextmanager
def real_gpu():
    yield choose_device("cuda")


DEVICES = {"fake": fake_gpu, "cuda": real_gpu}
on_each = pytest.mark.parametrize("device", ["fake", pytest.param("cuda", marks=needs_gpu)])
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_gpu)])


def layers_for(device, layers):
    """Leave out, for the slow fake device, what goes the way of another layer."""
    return {name: layers[name] for name in layers if device == "cuda" or name not in ALIKE}


def compare(tmp_path, device, source, spec, calibration=None):
    """Run on the CPU and on the device; return the report and the tensors of the device."""
    expected, _ = run(source, tmp_path / "cpu", CPU, spec, calibration)
    with DEVICES[device]() as chosen:
        found, tensors = run(source, tmp_path / "device", chosen, spec, calibration)
    assert_agree(expected, found)
    return found, tensors


@on_each
def test_every_form_and_every_rank_rule_agrees_with_the_cpu(tmp_path, device):
    layers = layers_for(device, FORMS | RULES)
    source, _ = write(tmp_path, layers, torch.bfloat16)
    found, _ = compare(tmp_path, device, source, spec_of(layers))

    assert [layer.name for layer in found.layers if layer.reason] == []


@on_each
def test_every_form_agrees_where_statistics_weigh_the_errors(tmp_path, device):
    layers = layers_for(device, FORMS)
    source, statistics = write(tmp_path, layers, torch.float32)
    found, _ = compare(tmp_path, device, source, spec_of(layers), statistics)

    assert all(layer.bias_corrected and layer.predicted_loss for layer in found.layers)


@on_each
def test_codecs_and_dense_weights_agree(tmp_path, device):
    layers = {name: FORMS[name] for name in ("svd", "pivot", "cur-two", "int4-svd")}
    source, _ = write(tmp_path, layers, torch.float16)
    for number, more in enumerate(({"dtype": "int8"}, {"dtype": "float32"}, {"layout": "dense"})):
        place = tmp_path / str(number)
        place.mkdir()
        named = {name: layers[name] for name in layers if more.get("layout") is None or "int" not in name}
        compare(place, device, source, spec_of(named, **more))


@on_each
def test_a_budget_over_several_forms_is_spent_alike(tmp_path, device):
    names = ("a", "b")
    source, statistics = write(tmp_path, names, torch.float32)
    spec = {"method": ["svd", "int4", "int4+svd"], "rank": {"budget_bytes": 100_000}}
    compare(tmp_path, device, source, spec, statistics)


@on_each
def test_the_same_neurons_are_cut(tmp_path, device):
    generator = torch.Generator().manual_seed(1)
    name = "model.layers.0.mlp"
    shapes = {"gate_proj": (96, 48), "up_proj": (96, 48), "down_proj": (48, 96)}
    weights = {f"{name}.{each}.weight": torch.randn(*shapes[each], generator=generator) for each in shapes}
    z = torch.randn(400, 96, generator=generator) * torch.linspace(0.1, 2, 96)
    save_file(weights, tmp_path / "model.safetensors")
    save_file({f"{name}.down_proj.gram": z.mT @ z}, tmp_path / "statistics.safetensors")
    spec = {"pairs": "neurons", "include": [], "rank": {"ratio": 0.75}}
    found, _ = compare(
        tmp_path, device, tmp_path / "model.safetensors", spec, tmp_path / "statistics.safetensors"
    )

    assert {layer.rank for layer in found.layers} == {72}


@on_gpu
def test_large_weights_agree_with_the_cpu(tmp_path, device):
    source, _ = write(tmp_path, LARGE, torch.float32, rows=LARGE_ROWS, columns=LARGE_COLUMNS)
    compare(tmp_path, device, source, spec_of(LARGE, rank=LARGE_RANK))


@on_gpu
@pytest.mark.parametrize("side", [32, 160, 448, LARGEST_JACOBI, LARGEST_JACOBI + 1, LARGE_COLUMNS])
def test_eigenvalues_in_float32_are_as_accurate_as_the_solvers_assume(device, side):
    root = decaying(side, side, 0)
    gram = root.mT @ root
    with DEVICES[device]() as chosen:
        values, rows = leading_eigenpairs(gram.to(chosen, torch.float32), side, all_values=True)
        rows = rows.cpu().double()

    allowed = GRAM_ROUNDING * torch.finfo(torch.float32).eps * float(gram.trace())
    true = torch.linalg.eigvalsh(gram).flip(0)
    assert float((values.cumsum(0) - true.cumsum(0)).abs().max()) <= allowed
    torch.testing.assert_close(rows @ rows.mT, torch.eye(side, dtype=torch.float64), rtol=0, atol=2e-5)


@on_gpu
def test_a_second_run_gives_the_same_bytes(tmp_path, device):
    layers = FORMS | {f"large-{name}": fields for name, fields in RULES.items()}
    source, statistics = write(tmp_path, layers, torch.float32)
    with DEVICES[device]() as chosen:
        runs = [
            run(source, tmp_path / f"{use}-{number}", chosen, spec_of(layers), calibration)[1]
            for use, calibration in (("plain", None), ("calibrated", statistics))
            for number in (0, 1)
        ]

    for first, second in (runs[:2], runs[2:]):
        assert [name for name in first if not torch.equal(first[name], second[name])] == []


@on_gpu
def test_the_memory_of_the_gpu_depends_on_the_largest_layer_and_not_on_their_number(tmp_path, device):
    peaks = []
    with DEVICES[device]() as chosen:
        # From so many on, as many results wait to be written as ever do.
        for count in (AHEAD_OF_GPU + 1, 3 * AHEAD_OF_GPU):
            place = tmp_path / str(count)
            place.mkdir()
            source, _ = write(
                place, [f"layer{at}" for at in range(count)], torch.float32, rows=2048, columns=1024
            )
            torch.cuda.reset_peak_memory_stats(chosen)
            before = torch.cuda.memory_allocated(chosen)
            run(source, place / "out", chosen, {"rank": {"ratio": 0.5}})
            peaks.append(torch.cuda.max_memory_allocated(chosen) - before)

    assert peaks[1] <= 1.1 * peaks[0]
    assert peaks[0] <= 16 * 2048 * 1024 * 4


@on_gpu
def test_products_keep_all_digits_whatever_the_environment_set(device):
    torch.set_float32_matmul_precision("high")
    with DEVICES[device]() as chosen:
        left, right = (torch.from_numpy(np.random.default_rng(seed).random((512, 512))) for seed in (0, 1))
        found = (left.to(chosen, torch.float32) @ right.to(chosen, torch.float32)).cpu().double()

    assert chosen == torch.zeros(1, device=chosen).device
    assert float((found / (left @ right) - 1).abs().max()) < 1e-6
