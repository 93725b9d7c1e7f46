"""schemas/planning/glob.py: what fnmatch says, at a price that the length of the name bounds."""

import re
import time
from fnmatch import translate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.planning.glob import SEARCH_NS, Glob, matching_ns

TABLE = [
    *(
        "",
        "*",
        "**",
        "?",
        "??",
        "a",
        "*a",
        "a*",
        "*a*",
        "a*b",
        "*.attention.*",
        "a?c",
        "*?b*",
        "a**b",
        "*a*a*",
    ),
    *(
        "[ab]",
        "[!ab]",
        "[!a-z]*",
        "*[!a-z]",
        "*[a-z]*b",
        "[[]",
        "[]]",
        "[!]]",
        "[]a]*",
        "*[[]b[]]*",
        "[",
        "[!",
    ),
    *(
        "[]",
        "[a",
        "[a*",
        "a[*",
        "*[*]*",
        "[*]",
        "[?]",
        "[!*]*",
        "[b-a]",
        "[!b-a]",
        "[-a]",
        "[a-]",
        "a]",
        "\\*",
    ),
    *("*.", ".*", "^a$", "a.b", "[^a]", "[a&&b]", "[a||b]", "ü*", "*[ü-ý]", "*\n*"),
]
NAMES = ["", "a", "b", "ab", "abc", "a.b", "[", "]", "[b]", "*", "?", "-", "^a$", "!", "\\", "\\x", "ü", "ý"]
NAMES += [
    "aab",
    "aaa",
    "a\nb",
    "x.attention.y",
    "x.attention",
    "encoder.layer.1.attention.self.query",
    "&",
    "|",
]


def fits(pattern, name):
    return re.compile(translate(pattern)).match(name) is not None


@pytest.mark.parametrize("pattern", TABLE)
def test_a_pattern_fits_what_it_fits_for_fnmatch(pattern):
    assert [name for name in NAMES if Glob(pattern).fits(name)] == [
        name for name in NAMES if fits(pattern, name)
    ]


@given(st.text("ab[]!-*?.^\\", max_size=10), st.text("ab[]!-.^\\*?\n", max_size=8))
@example("a*ab", "ab")
@example("*ab*b", "abb")
def test_any_pattern_fits_what_it_fits_for_fnmatch(pattern, name):
    assert Glob(pattern).fits(name) == fits(pattern, name)


HALF = "a" * 450
SLOW = [
    f"*{HALF}b*",
    f"*b{HALF}*",
    f"*{HALF}b{HALF}*",
    f"*{'a' * 900}b",
    "*" + "a" * 50 + "b*" + "a" * 50 + "*",
]


@pytest.mark.parametrize(
    "pattern", [*SLOW, "*a" * 450 + "b", "*" + "a?" * 200 + "b*", "*" + "[a-c]" * 200 + "d*"]
)
def test_no_match_takes_many_times_its_price(pattern):
    name, glob = "a" * 1000, Glob(pattern)
    least_s = min(_time(glob, name) for _ in range(5))
    # Ten times: for machines that are slower, or busy.
    assert least_s <= 10e-9 * matching_ns(pattern, names=1, characters=len(name))


@pytest.mark.parametrize("pattern", SLOW)
def test_text_costs_no_more_in_a_long_pattern_than_in_a_short_one(pattern):
    price = matching_ns(pattern, names=1, characters=1000)
    assert price - SEARCH_NS * (pattern.count("*") + 1) == matching_ns("*b", names=0, characters=1000)


def _time(glob, name):
    begun = time.perf_counter()
    glob.fits(name)
    return time.perf_counter() - begun
