"""schemas/report.py: every reason to keep a weight dense is explained."""

from typing import get_args

from schemas.report import KEPT_REASONS, KeptReason


def test_every_reason_to_keep_a_weight_has_its_text():
    assert tuple(KEPT_REASONS) == get_args(KeptReason)
