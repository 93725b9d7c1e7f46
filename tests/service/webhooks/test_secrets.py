"""`service.webhooks.secrets`: what signs for whom, by the setting or by a file."""

import base64

import pytest

from service.webhooks.secrets import WebhookSecrets

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))
TEXT = {secret: f"whsec_{base64.b64encode(secret).decode()}" for secret in (A, B, C)}


@pytest.mark.parametrize(
    ("setting", "of_alice", "of_nobody"),
    [
        (TEXT[A], (A,), (A,)),
        (f"{TEXT[A]} {TEXT[B]}", (A, B), (A, B)),
        (f"alice:{TEXT[A]} {TEXT[B]}, {TEXT[C]}", (A, B), (C,)),
        (f"alice:{TEXT[A]}", (A,), ()),
        (f"default:{TEXT[A]},{TEXT[B]}", (B,), (A,)),
    ],
)
def test_an_owner_has_its_own_secrets_or_those_of_all_others(setting, of_alice, of_nobody):
    secrets = WebhookSecrets(setting)
    assert (secrets.of("alice"), secrets.of("")) == (of_alice, of_nobody)


def test_a_changed_file_counts_at_the_next_message(tmp_path):
    file = tmp_path / "secrets"
    file.write_text(f"# whose\nalice:{TEXT[A]}\n{TEXT[B]}\n")
    secrets = WebhookSecrets(f"@{file}")
    assert (secrets.of("alice"), secrets.of("bob")) == ((A,), (B,))
    file.write_text(f"alice:{TEXT[A]} {TEXT[C]}\n")
    assert (secrets.of("alice"), secrets.of("bob")) == ((A, C), ())
    file.write_text("alice:none")
    assert secrets.of("alice") == (A, C)


@pytest.mark.parametrize(
    "setting",
    [
        "alice:",
        ",",
        f"al ice:{TEXT[A]}",
        f"alice:{TEXT[A]},alice:{TEXT[B]}",
        f"{TEXT[A]},{TEXT[B]}",
        "alice:whsec_x",
        "@/nowhere/secrets",
    ],
)
def test_a_fault_is_told_without_the_secrets(setting):
    with pytest.raises(ValueError, match=r"secret|empty|entries|file") as fault:
        WebhookSecrets(setting)
    assert "AQEB" not in str(fault.value)
