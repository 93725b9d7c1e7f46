"""The study of penalties: a small network all the way, through a service."""

from xml.etree import ElementTree as ET

import pytest

from eckart import Client
from eckart.train import LowRankPenalty
from examples.vgg11.digits import Pictures, digits
from examples.vgg11.network import VGG11
from examples.vgg11.regularized import WAYS, accuracy_chart, accuracy_table, measure, trained
from examples.vgg11.sweep import FACTORED


@pytest.fixture(scope="module")
def measured(tmp_path_factory, url):
    place = tmp_path_factory.mktemp("regularized")
    train, test = digits()
    train = Pictures(train.inputs[:128], train.labels[:128])
    test = Pictures(test.inputs[:40], test.labels[:40])
    found = []
    with Client(url) as client:
        for way in WAYS:
            file = place / f"{way.kind}.safetensors"
            network = trained(VGG11(hidden=96, thinner=32), way, train, file)
            found.append((network, measure(client, way, network, file, test, (8, 2))))
    return found


def test_each_penalty_is_less_after_training_with_it(measured):
    plain = measured[0][0]
    for network, one in measured[1:]:
        of_both = [LowRankPenalty(each, kind=one.way.kind, include=FACTORED)() for each in (network, plain)]
        assert of_both[0] < of_both[1]


def test_every_rank_is_judged_and_shown(measured):
    results = [one for _, one in measured]
    for one in results:
        assert list(one.by_rank) == [8, 2]
        assert all(0 <= share <= 1 for share in one.by_rank.values())
        assert 1 < one.factors[8] < one.factors[2]
    header, _, *lines = accuracy_table(results).splitlines()
    assert all(way.name in header for way in WAYS)
    assert [line.split("|")[1].strip() for line in lines] == ["as trained", "8", "2"]
    drawn = ET.fromstring(accuracy_chart(results))
    assert {way.name for way in WAYS} <= {
        text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")
    }
