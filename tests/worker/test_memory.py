"""worker/memory.py: the memory that a worker may use."""

import os

from worker.memory import memory_limit_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_limit_of_the_control_group_counts_where_it_is_the_least(tmp_path):
    files = [tmp_path / name for name in ("v2", "none", "unlimited", "huge")]
    files[0].write_text("1000000\n")
    files[2].write_text("max\n")
    files[3].write_text(f"{2**63 - 4096}\n")

    assert memory_limit_bytes(tuple(files)) == 1_000_000
    assert memory_limit_bytes(tuple(files[1:])) == MACHINE
    assert 0 < memory_limit_bytes() <= MACHINE
