"""Tables and their place in a page."""

import pytest

from examples.page import DOCS, PAGE, publish, put, table

PLACE = "before\n<!-- x: made by hand -->\nold\n<!-- end of x -->\nafter\n"


def test_a_table_has_a_line_under_its_header():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |"


def test_only_what_is_between_the_marks_is_replaced():
    assert put(PLACE, "x", "new") == PLACE.replace("old", "new")


def test_a_page_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="no markers for 'y'"):
        put(PLACE, "y", "new")


def test_without_being_asked_the_documentation_stays_as_it_is(tmp_path):
    before = (DOCS / PAGE).read_text()
    publish(tmp_path, "vgg11", tables="a table", picture="<svg/>", docs=False)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["vgg11.md", "vgg11.svg"]
    assert (DOCS / PAGE).read_text() == before


@pytest.mark.parametrize("name", ["vgg11", "minilm"])
def test_the_page_has_a_place_and_a_picture_for_each_study(name):
    text = (DOCS / PAGE).read_text()

    assert put(text, name, "new") != text
    assert f"7-{name}.svg" in text
    assert (DOCS / f"7-{name}.svg").is_file()
