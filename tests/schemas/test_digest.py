"""schemas/digest.py: digests follow RFC 9530 or, in the old field, RFC 3230; the client's copy agrees."""

import hashlib

import pytest

from eckart import http
from schemas.digest import DigestHeaderError, agreed_digest, parse_digest, repr_digest

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
    assert parse_digest("Repr-Digest", header) == HELLO.digest()


@pytest.mark.parametrize("header", [None, "", "sha-512=:YWJj:", "md5=x"])
def test_digests_by_other_algorithms_are_ignored(header):
    assert parse_digest("Repr-Digest", header) is None


@pytest.mark.parametrize(
    "header", ["sha-256=", "sha-256=abc", "sha-256=:abc", "sha-256=:", "sha-256=:!!!!:", "sha-256=:YWJj:"]
)
def test_a_malformed_digest_is_refused(header):
    with pytest.raises(DigestHeaderError, match="must look like"):
        parse_digest("Repr-Digest", header)


OLD = FIELD.replace(":", "").replace("sha", "SHA")


@pytest.mark.parametrize("header", [OLD, "sha-256=" + OLD[8:], f"md5=abc=,{OLD}, unixsum=1"])
def test_the_old_field_has_no_colons(header):
    assert parse_digest("Digest", header) == HELLO.digest()


@pytest.mark.parametrize("header", [FIELD, "SHA-256=", "SHA-256=abc", "SHA-256=YWJj"])
def test_a_malformed_old_field_is_refused(header):
    with pytest.raises(DigestHeaderError, match="Digest must look like SHA-256=<base64"):
        parse_digest("Digest", header)


def test_fields_that_agree_give_one_digest_and_others_are_refused():
    other = repr_digest(hashlib.sha256(b"else").hexdigest())

    assert agreed_digest({"Repr-Digest": FIELD, "Content-Digest": FIELD, "Digest": OLD}) == HELLO.digest()
    assert agreed_digest({"Repr-Digest": None, "Content-Digest": FIELD, "Digest": "md5=x"}) == HELLO.digest()
    assert agreed_digest({"Repr-Digest": None, "Digest": None}) is None
    with pytest.raises(DigestHeaderError, match="Repr-Digest and Content-Digest give different"):
        agreed_digest({"Repr-Digest": FIELD, "Content-Digest": other})


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
def test_the_client_writes_and_reads_the_same(content):
    digest = hashlib.sha256(content)

    assert http.repr_digest(digest.hexdigest()) == repr_digest(digest.hexdigest())
    assert http.sha256_of(repr_digest(digest.hexdigest())) == digest.hexdigest()
    assert parse_digest("Repr-Digest", http.repr_digest(digest.hexdigest())) == digest.digest()
