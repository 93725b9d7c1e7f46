"""`service.access.keys`: the setting and the file of keys, which is read again when it changes."""

import hashlib
import logging

import pytest
from pydantic import ValidationError

from service.access.keys import KeyRing, parse_keys
from service.settings import Settings
from state.settings import setting_errors

HASH = hashlib.sha256(b"of bob").hexdigest()


def owner_of(ring, secret):
    key = ring.find(secret)
    return None if key is None else key.owner


def test_keys_have_names_and_secrets_plain_or_hashed():
    ring = KeyRing(f"alice:of:alice, bob:sha256:{HASH}, default:mine")
    assert owner_of(ring, "of:alice") == "alice"
    assert owner_of(ring, "of bob") == "bob"
    assert owner_of(ring, "mine") == ""
    for wrong in ("", "alice", "of:alice ", HASH, f"sha256:{HASH}", "of:alicé", "OF:ALICE"):
        assert owner_of(ring, wrong) is None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("", "it is empty"),
        (" , ", "it names no key"),
        ("sekret", "key 1 does not begin with a name"),
        ("alice:x,b/b:sekret", "key 2 does not begin with a name"),
        ("alice:", "the secret of key 1 is empty"),
        ("alice:sek ret", "not of printable ASCII"),
        ("alice:sha256:sekret", "64 hexadecimal digits"),
        ("alice:x,alice:y", "two keys have the same name"),
        ("alice:sekret,bob:sekret", "two keys have the same secret"),
        ("@/nowhere/sekrets", "the file that it names cannot be read: No such file"),
        ("@/dev/null", "it names no key"),
    ],
)
def test_what_is_no_list_of_keys_stops_the_start_and_is_not_repeated(monkeypatch, setting, said):
    monkeypatch.setenv("ECKART_API_KEYS", setting)
    with pytest.raises(ValidationError) as refusal:
        Settings()
    (line,) = setting_errors(refusal.value)
    assert line.startswith("ECKART_API_KEYS: ")
    assert said in line
    assert "sek" not in line


def test_settings_do_not_show_keys():
    assert "sekret" not in repr(Settings(api_keys="alice:sekret"))


def test_a_file_has_one_key_a_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# who\nalice:x\n\n  bob:y  \n")
    ring = KeyRing(f"@{file}")
    assert (owner_of(ring, "x"), owner_of(ring, "y"), owner_of(ring, "# who")) == ("alice", "bob", None)


def test_a_changed_file_counts_at_once(tmp_path):
    file = tmp_path / "keys"
    file.write_text("alice:x\n")
    ring = KeyRing(f"@{file}")
    file.write_text("alice:new\nbob:y\n")
    assert (owner_of(ring, "x"), owner_of(ring, "new"), owner_of(ring, "y")) == (None, "alice", "bob")


FAULTS = {"malformed": "alice:x\nsekret line\n", "emptied": "", "all comments": "# alice:sekret\n\n"}


@pytest.mark.parametrize("fault", [*FAULTS, "gone"])
def test_a_file_that_cannot_be_taken_changes_nothing_and_is_logged_without_secrets(tmp_path, caplog, fault):
    file = tmp_path / "keys"
    file.write_text("alice:x\n")
    ring = KeyRing(f"@{file}")
    file.write_text(FAULTS[fault]) if fault in FAULTS else file.unlink()
    with caplog.at_level(logging.INFO, "eckart.service"):
        assert owner_of(ring, "x") == "alice"
        assert owner_of(ring, "sekret line") is None
    (record,) = caplog.records
    assert f"{file} is not taken, so the keys stay as they were" in record.message
    assert record.levelno >= logging.WARNING
    assert "sekret" not in record.message
    other = tmp_path / "other"
    other.write_text("bob:y\n")
    other.replace(file)
    assert (owner_of(ring, "x"), owner_of(ring, "y")) == (None, "bob")


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_short_plain_secrets_are_warned_of_at_each_reading_and_not_shown(tmp_path, caplog):
    short, long = "sekret-of-15-ch", "a-secret-of-16-c"
    file = tmp_path / "keys"
    file.write_text(f"alice:{short}\nbob:{long}\ncarol:sha256:{HASH}\n")
    ring = KeyRing(f"@{file}")
    ring.warn()
    (warning,) = warnings(caplog)
    assert "the key alice has fewer than 16 characters" in warning
    file.write_text(f"alice:{short}\nbob:{short}2\ndave:x\n")
    caplog.clear()
    assert owner_of(ring, short) == "alice"
    assert [next(name for name in ("alice", "bob", "dave") if name in text) for text in warnings(caplog)] == [
        "alice",
        "dave",
    ]
    assert "sekret" not in caplog.text


def test_a_service_warns_of_short_secrets_once_at_its_start(start, caplog):
    start(api_keys="alice:x")
    (warning,) = [text for text in warnings(caplog) if "characters" in text]
    assert "the key alice" in warning


def test_errors_count_keys_from_one():
    with pytest.raises(ValueError, match="key 2"):
        parse_keys(["alice:x", "bob"])
