"""Trying again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from eckart.errors import TransferError
from eckart.patience import Patience, retry_after_s


@pytest.mark.parametrize(
    ("field", "pause_s"),
    [
        ("0", 0.0),
        ("17", 17.0),
        (" 3 ", 3.0),
        (None, None),
        ("soon", None),
        ("-1", None),
        ("²", None),
        (format_datetime(datetime.now(UTC) - timedelta(days=1)), 0.0),
    ],
)
def test_retry_after_is_read_as_seconds(field, pause_s):
    assert retry_after_s(field) == pause_s


def test_retry_after_may_be_a_date():
    at = datetime.now(UTC) + timedelta(days=1)

    assert 86_000 < retry_after_s(format_datetime(at, usegmt=True)) <= 86_400


def test_no_patience_raises_the_error_at_once():
    error = TransferError("gone")

    with pytest.raises(TransferError) as caught:
        Patience(0).pause(error)

    assert caught.value is error


def test_a_pause_beyond_the_limit_is_not_slept_through():
    with pytest.raises(TransferError):
        Patience(60).pause(TransferError("gone"), asked_s=3600)
