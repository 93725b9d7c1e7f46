"""worker/processors.py: a control group's quota counts, since more threads than that only wait."""

import os

import pytest

from worker.processors import processors, quota

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"cpu.max": "200000 100000"}, 2.0),
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 1.5),
        ({"cpu.max": "no number"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_either_kind_of_control_group_is_found(tmp_path, files, found):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")

    assert quota(tmp_path) == found
    assert processors(tmp_path) == (HERE if found is None else max(1, min(HERE, -int(-found // 1))))
