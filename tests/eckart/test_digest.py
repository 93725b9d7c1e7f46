"""Repr-Digest fields, both ways."""

from __future__ import annotations

import hashlib

import pytest

from eckart.digest import repr_digest, sha256_of

HELLO = hashlib.sha256(b"hello").hexdigest()
FIELD = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"


def test_a_digest_is_written_as_the_rfc_does():
    assert repr_digest(HELLO) == FIELD


@pytest.mark.parametrize(
    ("field", "sha256"),
    [
        (FIELD, HELLO),
        (f"sha-512=:AAAA:, {FIELD}", HELLO),
        (f"md5=:AAAA:,{FIELD}", HELLO),
        (None, None),
        ("", None),
        ("sha-512=:AAAA:", None),
        (FIELD.replace(":", ""), None),
        (FIELD.replace("LPJ", "L!J"), None),
        (FIELD.replace("sha-256", "x-sha-256"), None),
    ],
)
def test_a_digest_is_read_where_there_is_one(field, sha256):
    assert sha256_of(field) == sha256
