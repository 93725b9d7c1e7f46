"""The study of an image: what it draws, what it writes, and that its page says what it measures."""

import re
from io import BytesIO

import matplotlib.image
import numpy as np
import pytest

from eckart import Client
from examples.image import HEIGHT, METHODS, PAGE, PICTURE, RANKS, WIDTH, all_kept, drawn, greys, overview, png


@pytest.fixture(scope="module")
def results(tmp_path_factory, url):
    with Client(url) as client:
        return all_kept(client, drawn(), tmp_path_factory.mktemp("image"))


def error(image, other):
    return np.linalg.norm(image - other) / np.linalg.norm(image)


def test_the_drawing_is_the_same_each_time_and_has_whole_greys():
    image = drawn()

    assert image.shape == (HEIGHT, WIDTH)
    assert np.array_equal(image, drawn())
    assert np.array_equal(image, greys(image))
    assert np.linalg.matrix_rank(image) > max(RANKS)


@pytest.mark.parametrize("image", [drawn(), np.array([[0.0, 255, 7]]), np.array([[255.0], [0], [1]])])
def test_a_png_file_has_the_pixels_that_it_was_made_from(image):
    read = matplotlib.image.imread(BytesIO(png(image)), format="png")

    assert np.array_equal(np.rint(read * 255), image)


def test_every_error_is_that_of_the_factors_and_svd_has_the_least_there_is(results):
    image = drawn()
    squares = np.linalg.svd(image, compute_uv=False) ** 2
    found = {(one.method, one.rank): one.relative_error for one in results}

    for one in results:
        assert one.relative_error == pytest.approx(error(image, one.image), rel=1e-4)
    for rank in RANKS:
        least = np.sqrt(squares[rank:].sum() / squares.sum())
        assert found["svd", rank] == pytest.approx(least, rel=1e-4)
        assert found["svd", rank] < found["cx", rank] < found["cur", rank]


def test_the_page_has_the_table_that_the_study_measures(results):
    """Another machine may round an error differently, or take a neighbouring column."""
    text = PAGE.read_text()
    row = r"^\| (svd|cx|cur) \| (\d+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$"
    lines = re.findall(row, text, re.MULTILINE)

    assert len(lines) == len(METHODS) * len(RANKS)
    for line, one in zip(lines, results, strict=True):
        assert line[:3] == (one.method, str(one.rank), f"{one.numbers:,}")
        assert line[3] == f"{one.numbers / (HEIGHT * WIDTH):.3f}"
        assert float(line[4]) == pytest.approx(one.relative_error, rel=0.02)


def test_the_factors_of_rank_10_take_more_bytes_than_a_png_file_of_the_drawing(results):
    least = min(4 * one.numbers for one in results if one.rank == min(RANKS))

    assert least > len(png(drawn()))


def test_the_picture_of_the_page_is_the_overview_of_all_results(results):
    shown = np.rint(255 * matplotlib.image.imread(PICTURE))
    now = overview(results)

    assert shown.shape == now.shape
    assert np.abs(shown - now).mean() < 2
    assert PICTURE.stat().st_size <= 100_000
