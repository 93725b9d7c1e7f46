"""service/long_document.py: a long document is sent as it was written, and takes little memory until then."""

import tracemalloc

import pytest

from service.long_document import BLOCK_CHARACTERS, LongDocument


@pytest.mark.parametrize(
    "parts",
    [[], ["{}"], ["[", *["\u00e9\U0001f600"] * BLOCK_CHARACTERS, "]"], ["x" * BLOCK_CHARACTERS]],
    ids=["none", "short", "long", "one block"],
)
def test_what_is_sent_is_what_was_written(parts):
    document = LongDocument(iter(parts))
    sent = b"".join(document.blocks())
    assert sent == "".join(parts).encode()
    assert document.nbytes == len(sent)
    assert document.response().headers["content-length"] == str(len(sent))


def test_a_long_document_takes_a_fraction_of_its_length():
    tracemalloc.start()
    try:
        document = LongDocument(
            f'{{"name":"h.{number}","rank":1,"reason":null}}' for number in range(100_000)
        )
        assert document.nbytes > 4_000_000
        assert sum(map(len, document.blocks())) == document.nbytes
        assert tracemalloc.get_traced_memory()[1] < document.nbytes / 2
    finally:
        tracemalloc.stop()
