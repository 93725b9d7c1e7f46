"""schemas/digest.py: Repr-Digest follows RFC 9530, and the client's own copy agrees."""

import hashlib

import pytest

from eckart import http
from schemas.digest import DigestHeaderError, parse_repr_digest, repr_digest

HELLO = hashlib.sha256(b"hello")
FIELD = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"


def test_a_digest_is_written_as_the_rfc_says():
    assert repr_digest(HELLO.hexdigest()) == FIELD


@pytest.mark.parametrize(
    "header",
    [
        FIELD,
        FIELD.replace("=:L", " = :L"),
        FIELD.replace("sha", "SHA"),
        f"sha-512=:YWJj:, {FIELD}",
        f"{FIELD}, unixsum=:YWJj:",
        f"{FIELD};by=me",
    ],
)
def test_a_digest_is_read_at_any_position(header):
    assert parse_repr_digest(header) == HELLO.digest()


@pytest.mark.parametrize("header", [None, "", "sha-512=:YWJj:", "md5=x"])
def test_digests_by_other_algorithms_are_ignored(header):
    assert parse_repr_digest(header) is None


@pytest.mark.parametrize(
    "header", ["sha-256=", "sha-256=abc", "sha-256=:abc", "sha-256=:", "sha-256=:!!!!:", "sha-256=:YWJj:"]
)
def test_a_malformed_digest_is_refused(header):
    with pytest.raises(DigestHeaderError, match="must look like"):
        parse_repr_digest(header)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
def test_the_client_writes_and_reads_the_same(content):
    digest = hashlib.sha256(content)

    assert http.repr_digest(digest.hexdigest()) == repr_digest(digest.hexdigest())
    assert http.sha256_of(repr_digest(digest.hexdigest())) == digest.hexdigest()
    assert parse_repr_digest(http.repr_digest(digest.hexdigest())) == digest.digest()
