"""The study of VGG-11: torchvision's network, counts that are known, and a small one all the way."""

from xml.etree import ElementTree as ET

import pytest
import torch

from eckart import Client
from examples.vgg11.digits import Pictures, digits
from examples.vgg11.network import VGG11, parameters
from examples.vgg11.result import accuracy_chart, accuracy_table, neighbour_table
from examples.vgg11.study import Study, trained
from examples.vgg11.sweep import FACTORS, NEIGHBOURS, SEEDS, Point, neighbours, sweep
from examples.vgg11.training import accuracy, fit

# ranks and classifier parameters of the table this study repeats. Its truncated SVD also refactored the
# last layer, at full rank, which took 100 parameters more than leaving it dense.
REFACTORED = 100
KNOWN = [
    ("svd", 25, (141, 82), 4_835_950 - REFACTORED),
    ("svd", 50, (71, 41), 2_457_198 - REFACTORED),
    ("svd", 150, (24, 14), 864_366 - REFACTORED),
    ("svd", 225, (16, 10), 598_126 - REFACTORED),
    ("svd", 300, (12, 7), 456_814 - REFACTORED),
    ("cx", 2, (1761, 1024), 59_830_794),
    ("cx", 12, (293, 171), 10_000_906),
    ("cur", 29, (121, 71), 4_162_058),
    ("cur", 53, (66, 39), 2_294_794),
    ("cur", 100, (35, 20), 1_234_442),
]


@pytest.fixture(scope="module")
def full():
    with torch.device("meta"):
        return VGG11()


@pytest.fixture(scope="module")
def pictures():
    train, test = digits()
    return Pictures(train.inputs[:96], train.labels[:96]), Pictures(test.inputs[:40], test.labels[:40])


@pytest.fixture(scope="module")
def measured(tmp_path_factory, pictures, url):
    """Measure a network of a 32nd of the width at a few points, through a service."""
    place = tmp_path_factory.mktemp("study")
    file = place / "vgg11.safetensors"
    network = trained(VGG11(hidden=96, thinner=32), pictures[0], file)
    with Client(url) as client:
        study = Study.of(client, file, network, pictures, place / "result")
        points = [Point("svd", 2), Point("cx", 2), *(Point("cur", factor) for factor in NEIGHBOURS)]
        found = [study.measure(point, tune=point.factor == 2) for point in points]
    return network, file, found


def test_the_network_has_torchvisions_names_and_counts(full):
    weights = [name for name, _ in full.named_parameters() if name.endswith(".weight")]

    assert weights == [
        *(f"features.{place}.weight" for place in (0, 3, 6, 8, 11, 13, 16, 18)),
        *(f"classifier.{place}.weight" for place in (0, 3, 6)),
    ]
    assert (parameters(full.features), parameters(full.classifier)) == (9_220_480, 119_586_826)
    assert full.classifier[0].weight.shape == (4096, 25088)


@pytest.mark.parametrize(("method", "factor", "ranks", "count"), KNOWN)
def test_ranks_and_counts_are_those_of_the_table_this_study_repeats(full, method, factor, ranks, count):
    point = Point(method, factor)

    assert tuple(point.ranks(full).values()) == ranks
    assert point.parameters(full) == count


def test_the_sweep_has_every_method_at_every_factor_and_columns_by_chance_at_neighbours():
    assert len(set(sweep())) == 3 * len(FACTORS)
    assert set(NEIGHBOURS) <= set(FACTORS)
    assert len(set(neighbours())) == len(SEEDS) * len(NEIGHBOURS)


def test_the_digits_are_split_the_same_way_every_time_and_each_class_is_on_both_sides():
    train, test = digits()

    assert (train.inputs.shape, test.inputs.shape) == ((1198, 3, 32, 32), (599, 3, 32, 32))
    assert train.labels.unique().equal(test.labels.unique())
    assert (train.inputs.min(), train.inputs.max()) == (-1, 1)


def test_training_lowers_the_error_on_what_was_trained_with(pictures):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    before = accuracy(model, pictures[0])
    fit(model, model.parameters(), pictures[0], epochs=20, rate=1e-3, seed=0)

    assert before < 0.5
    assert accuracy(model, pictures[0]) > 0.9


def test_a_trained_network_is_taken_from_its_file(measured, pictures):
    network, file, _ = measured
    again = trained(VGG11(hidden=96, thinner=32), pictures[0], file)

    assert not again.training
    assert all(mine.equal(its) for mine, its in zip(network.parameters(), again.parameters(), strict=True))


def test_what_comes_back_has_the_ranks_and_the_count_asked_for(measured):
    network, _, found = measured
    for one in found:
        convolutions = parameters(network.features)
        assert one.parameters == one.point.parameters(network)
        assert one.classifier_factor == parameters(network.classifier) / one.parameters
        assert one.whole_factor == parameters(network) / (convolutions + one.parameters)
        assert 0 < one.relative_error < 1
        assert 0 <= one.accuracy <= 1
        assert (one.tuned is not None) == (one.point.factor == 2)


def test_the_tables_have_a_line_for_every_job_and_one_for_every_way_of_choosing(measured):
    network, _, found = measured
    lines = accuracy_table(0.5, parameters(network.classifier), found).splitlines()

    assert (
        lines[2] == f"| 1 | as trained |  | {parameters(network.classifier):,} | 1.00 | 1.00 | 0 | 50.00 |  |"
    )
    assert [line.split("|")[2].strip() for line in lines[3:]] == [one.point.method for one in found]
    assert {line.count("|") for line in lines} == {10}
    (line,) = neighbour_table(found).splitlines()[2:]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    figures = [100 * one.accuracy for one in found if one.point.factor in NEIGHBOURS]
    assert cells[:3] == ["cur", "qdeim", ""]
    assert [float(cell) for cell in cells[3:-1]] == pytest.approx(figures, abs=0.005)
    assert float(cells[-1]) == pytest.approx(max(figures) - min(figures), abs=0.005)


def test_the_chart_draws_accuracy_before_and_after_the_fine_tune(measured):
    _, _, found = measured
    root = ET.fromstring(accuracy_chart(0.5, found))
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]

    assert {"as trained", "svd", "svd, fine-tuned", "cx", "cx, fine-tuned"} <= set(names)
