"""worker.lowrank.factor: memory is a few copies of the weight, and no full matrices."""

import subprocess
import sys

MEASURE = """
import torch
from tests.peak import peak_kib
from tests.worker.lowrank.requests import asked
from worker.lowrank import factor

weight = torch.randn({rows}, {columns}, dtype=torch.bfloat16)
request = asked(method="{method}", rank=64, max_rank=400, dtype=torch.bfloat16)
factor(weight[:128, :64], request)
before = peak_kib()
factor(weight, request)
print((peak_kib() - before) / 1024)
"""


def growth_mib(rows, columns, method):
    script = MEASURE.format(rows=rows, columns=columns, method=method)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_factoring_a_tall_weight_takes_a_few_copies_of_it_and_no_full_matrices():
    float32_mib = 20000 * 512 * 4 / 2**20  # 39; U with full_matrices would be 1526

    assert growth_mib(20000, 512, "svd") < 6 * float32_mib


def test_factoring_a_wide_weight_by_columns_takes_as_few():
    float32_mib = 512 * 20000 * 4 / 2**20

    assert growth_mib(512, 20000, "cx") < 6 * float32_mib


MEASURE_CALIBRATED = """
import torch
from tests.peak import peak_kib
from tests.worker.lowrank.requests import asked
from worker.lowrank import Statistics, factor, gram_fault

def calibrated(weight):
    gram = torch.eye(weight.shape[1])
    assert gram_fault(gram) is None
    statistics = Statistics(gram=gram)
    factor(weight, asked("svd", rank=8, max_rank=400, dtype=torch.bfloat16, statistics=statistics))

weight = torch.randn(256, 4096, dtype=torch.bfloat16)
calibrated(weight[:, :64])
before = peak_kib()
calibrated(weight)
print((peak_kib() - before) / 1024)
"""


def test_a_gram_matrix_takes_a_few_copies_of_it():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_CALIBRATED], capture_output=True, text=True, check=True
    )
    float64_mib = 4096 * 4096 * 8 / 2**20  # 128

    assert float(done.stdout) < 4 * float64_mib
