"""Allocating the space of a file before its bytes, where the file system can.

`posix_fallocate` writes into every block where the file system cannot, as NFS before 4.2: hours for a large
file. The system call says so instead, and then space is taken as bytes are written.
"""

import ctypes
import errno
import os
from functools import cache

NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})


def allocate(descriptor: int, start: int, nbytes: int) -> bool:
    """Allocate bytes of an open file; False: the file system cannot. Raises OSError if the disk is full."""
    fallocate = _fallocate()
    if fallocate is None:
        return False
    while fallocate(descriptor, 0, start, nbytes) != 0:
        code = ctypes.get_errno()
        if code in NOT_SUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


@cache
def _fallocate() -> "ctypes._NamedFuncPointer | None":
    # glibc has both, musl the second alone; an offset has 64 bits in either.
    library = ctypes.CDLL(None, use_errno=True)
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        function.restype = ctypes.c_int
    return function
