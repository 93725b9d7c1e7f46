"""The documentation as a site, but for the tool that builds it: tools/website.py."""

import json

import pytest

import eckart
from tools.pins import ROOT
from tools.website import DOCS, PYTHON, configuration, copied, left_out, lost_links, places, write_pages


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    stage = tmp_path_factory.mktemp("pages")
    write_pages(stage)
    return stage


def test_every_page_and_picture_has_a_place_of_its_own(stage):
    sources = [path for path in DOCS.rglob("*") if path.is_file() and path.name != "generate.py"]

    assert set(sources) <= set(places())
    assert len(set(places().values())) == len(places())
    assert all((stage / place).is_file() for place in places().values())


def test_every_page_is_in_the_navigation(stage):
    assert left_out(stage) == set()


def test_every_link_between_the_copies_leads_somewhere(stage):
    assert lost_links(stage) == []


def test_what_is_wrong_is_found(tmp_path):
    (tmp_path / "a.md").write_text("[b](b.md) ![c](c.png) [a](a.md#x) [d](https://d.example) `[e](e.md)`\n")

    assert lost_links(tmp_path) == ["a.md: b.md", "a.md: c.png"]
    assert left_out(tmp_path) == {"a.md"}


def test_a_copy_has_its_links_turned_to_the_copies():
    down, up = copied(ROOT / "CONTRIBUTING.md", places()), copied(DOCS / "README.md", places())

    assert "](1-path.md)" in down
    assert "](contents.md)" in down
    assert "](CONTRIBUTING.md)" in up
    assert "](decisions/template.md)" in up


def test_no_font_or_script_comes_from_another_host():
    found = configuration()

    assert found["theme"]["font"] is False
    assert "mermaid" not in json.dumps(found["markdown_extensions"])
    assert "://" not in json.dumps({key: value for key, value in found.items() if key != "nav"})


def test_the_reference_has_what_a_user_imports(stage):
    objects = [name for names, _ in PYTHON.values() for name in names]

    assert {"eckart", "eckart.torch", "eckart.transformers", "eckart.types"} <= set(objects)
    assert "calibrate" in eckart.__all__
    assert "::: eckart.calibrate.calibrate\n" in (stage / "python" / "eckart.md").read_text()
    assert json.loads((stage / "openapi.json").read_text())["paths"]
    assert "::: worker.lowrank\n" in (stage / "python" / "lowrank.md").read_text()
