"""Random decompositions for the tests of the cache, and how a reader reads them."""

import random
from array import array
from dataclasses import replace

from state.cache.file import DamagedFile, DecompositionHeader, encode_header
from state.cache.key import DecompositionKey

SHA = "ab" * 32
KEY = DecompositionKey(SHA, "a.weight", "F32", (400, 300))
ENVIRONMENT = b"e" * 32


def example(key=KEY, *, rows=300, length=300, item_bytes=4, seed=0, exponent=2):
    """Return a header and a random basis of that shape."""
    chance = random.Random(seed)
    values = array("d", sorted((chance.random() for _ in range(min(key.shape))), reverse=True))
    head = DecompositionHeader(
        key.digest, ENVIRONMENT, exponent, 1e-9, "columns", item_bytes, rows, length, values
    )
    return head, memoryview(chance.randbytes(rows * length * item_bytes))


def path_of(cache, key=KEY):
    return cache._path(key)


def read(cache, key=KEY, rows=None):
    """Return the header and the leading rows as a reader gets them; None if missing or damaged."""
    file = cache.open(key)
    if file is None:
        return None
    with file:
        count = file.rows_of_blocks(file.head.rows if rows is None else rows)
        buffer = bytearray(count * file.head.row_bytes)
        try:
            file.read_into(memoryview(buffer))
        except DamagedFile as damage:
            cache.discard(key, damage)
            return None
        return file.head, bytes(buffer)


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "decompositions").glob("*/*"))


def folders(tmp_path):
    return [path for path in (tmp_path / "decompositions").iterdir() if path.is_dir()]


def numbered(count):
    return [replace(KEY, tensor=f"l{i}.weight", file_sha256=f"{i % 2:064d}") for i in range(count)]


SIZE = len(encode_header(*example())) + 300 * 1200
