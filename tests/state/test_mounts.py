"""state/mounts.py: a mount on which locks are no locks for other machines is named."""

from pathlib import Path

import pytest

from state.mounts import lock_warning

ROOT = "/dev/vda / ext4 rw,relatime 0 0\n"


def nfs(options, where="/data", kind="nfs4"):
    return f"{ROOT}host:/export {where} {kind} rw,vers=4.2,{options},addr=10.0.0.1 0 0\n"


@pytest.mark.parametrize(
    ("folder", "mounts", "warned"),
    [
        ("/data/eckart", nfs("local_lock=flock"), True),
        ("/data", nfs("local_lock=all"), True),
        ("/data/eckart", nfs("nolock,local_lock=all", kind="nfs"), True),
        ("/my data/x", nfs("local_lock=all", where="/my\\040data"), True),
        ("/data/eckart", nfs("local_lock=none"), False),
        ("/data/eckart", nfs("local_lock=posix"), False),
        ("/database", nfs("local_lock=all"), False),
        ("/data/eckart", ROOT, False),
        ("/data/disk/x", nfs("local_lock=all") + "/dev/vdb /data/disk ext4 rw 0 0\n", False),
        ("/data", "", False),
    ],
)
def test_a_mount_with_local_locks_is_warned_of(folder, mounts, warned):
    warning = lock_warning(Path(folder), mounts)
    assert (warning is not None) == warned
    if warning is not None:
        assert "local_lock=none" in warning


def test_this_machines_own_mounts_can_be_read(tmp_path):
    assert lock_warning(tmp_path) is None
