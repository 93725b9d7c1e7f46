"""state/allocation.py: space is taken at once where the file system can, and never by writing."""

import errno
import os

import pytest

from state.allocation import allocate


@pytest.fixture
def descriptor(tmp_path):
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def test_allocated_space_belongs_to_the_file_and_reads_as_zeros(descriptor):
    assert allocate(descriptor, 4096, 1 << 20)

    status = os.fstat(descriptor)
    assert status.st_size == 4096 + (1 << 20)
    assert status.st_blocks * 512 >= 1 << 20
    assert os.pread(descriptor, 1 << 20, 0).count(0) == 1 << 20


def test_what_the_disk_does_not_hold_is_an_error(descriptor):
    with pytest.raises(OSError, match=r".") as refused:
        allocate(descriptor, 0, 1 << 55)

    assert refused.value.errno in {errno.ENOSPC, errno.EFBIG}


def test_a_file_system_that_cannot_allocate_is_told_from_a_full_disk():
    # A file of the kernel's: writing into each block, as the C library would, fails with another error.
    opened = os.open("/proc/self/comm", os.O_WRONLY)
    try:
        assert allocate(opened, 0, 4096) is False
    finally:
        os.close(opened)
