"""What all studies share: examples/recipes.py, trial.py and frontier.py."""

from xml.etree import ElementTree as ET

import pytest

from examples.frontier import frontier, frontier_chart, quality_table
from examples.plot import Axis
from examples.recipes import Recipe, Subject, low_rank, mixed, neurons, rounded
from examples.trial import Measured
from schemas.spec import CompressionSpec

SUBJECT = Subject(include=["encoder.*"], weight_bytes=800, file_bytes=1000, inputs="inputs", both="both")
RECIPES = [*low_rank(SUBJECT, [0.5]), *neurons(SUBJECT, [0.5]), *rounded(SUBJECT), *mixed(SUBJECT, [0.2])]


def measured(family, rule, size, *quality):
    recipe = Recipe(family, rule, f"about {size}", {})
    return Measured(recipe, parameters=1.0, bytes=size, relative_error=0.25, quality=quality)


FOUND = [
    measured("rounded", "int4", 0.14, 0.98, 0.9),
    measured("low rank", "svd", 0.5, 0.9, 0.8),
    measured("rounded", "int8", 0.25, 0.999, 0.99),
    measured("low rank", "svd", 0.3, 0.6, 0.5),
    measured("low rank", "pivot", 0.4, 0.95, 0.5),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.rule} {recipe.asked}")
def test_every_spec_of_the_studies_is_one(recipe):
    CompressionSpec.model_validate(recipe.spec)


def test_every_recipe_has_a_name_of_its_own_and_every_rule_one_family():
    assert len({(recipe.rule, recipe.asked) for recipe in RECIPES}) == len(RECIPES)
    assert len({(recipe.rule, recipe.family) for recipe in RECIPES}) == len({one.rule for one in RECIPES})


def test_without_calibrations_no_spec_names_one():
    bare = Subject(include=["classifier.*"], weight_bytes=800, file_bytes=1000)
    recipes = [*low_rank(bare, [0.5]), *rounded(bare), *mixed(bare, [0.2])]

    assert not any("calibration" in recipe.spec for recipe in recipes)
    assert {recipe.family for recipe in recipes} == {
        "no calibration",
        "low rank, int8 factors",
        "plain rounding",
        "rounded + svd",
        "one budget over all forms",
    }


def test_a_share_of_the_bytes_leaves_the_rest_of_the_file_as_it_is():
    assert SUBJECT.bytes_for(1) == 1000
    assert SUBJECT.bytes_for(0.25) == 400


def test_a_frontier_has_only_points_that_nothing_smaller_beats():
    points = [(3, 0.2), (1, 0.5), (2, 0.5), (2, 0.7), (4, 0.3), (5, 0.1)]

    assert frontier(points) == [(1, 0.5), (3, 0.2), (5, 0.1)]
    assert frontier([]) == []


def test_the_table_has_a_line_for_every_job_by_rule_and_size():
    header, _, *lines = quality_table(("mean", "least"), (2, 1), FOUND).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

    assert header.endswith("| mean | least |")
    assert [line[0] for line in cells] == ["int4", "svd", "svd", "int8", "pivot"]
    assert cells[1] == ["svd", "about 0.3", "1.000", "0.3000", "0.2500", "0.60", "0.5"]


def test_the_chart_draws_one_line_for_every_family_through_its_frontier():
    y = Axis("loss", 1e-4, 1, (1e-4, 1), logarithmic=True)
    picture = frontier_chart("title", y, lambda cosine: 1 - cosine, FOUND)
    texts = {text.text for text in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")}

    assert {"rounded", "low rank", "title", "loss"} <= texts
    assert not {"svd", "pivot", "int4"} & texts


def test_families_have_colours_of_their_own():
    families = {recipe.family for recipe in RECIPES}
    y = Axis("loss", 1e-4, 1, (1e-4, 1), logarithmic=True)
    one_each = [measured(family, family, 0.3, 0.5) for family in sorted(families)]
    picture = frontier_chart("title", y, lambda cosine: 1 - cosine, one_each)
    texts = {text.text for text in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")}

    assert families <= texts
