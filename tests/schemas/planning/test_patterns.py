"""schemas/planning/patterns.py: which names a list of patterns fits."""

from fnmatch import fnmatchcase
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.planning import glob
from schemas.planning.patterns import Patterns, matching_ns

names = st.text("ab.[", max_size=6)
shell_patterns = st.text("ab.*?[]!", min_size=1, max_size=5)


@given(st.lists(shell_patterns, max_size=4), names)
def test_the_first_pattern_that_fits_is_found_as_by_fnmatch(patterns, name):
    fitting = [number for number, pattern in enumerate(patterns) if fnmatchcase(name, pattern)]

    assert Patterns(patterns).find(name) == (fitting[0] if fitting else None)


@pytest.mark.parametrize(
    ("pattern", "module", "fits"),
    [
        ("last:embed*", "model.embed_tokens", True),
        ("last:embed*", "embed_tokens", True),
        ("last:embed*", "Model.EmbedTokens", True),
        ("last:EMBED*", "model.embed_tokens", True),
        ("last:embed*", "embedder.linear", False),
        ("last:a.*", "a.b", True),
        ("last:*a.*", "x.A.b", True),
        ("last:*a.*", "a.x.b", False),
        ("last:*a.*", "x.a", False),
        ("last:*a.*", "a", False),
        ("last:*.*.c", "b.c", False),
        ("last:*.*.c", "x.a.b.c", True),
        ("embed*", "embeddings.dense", True),
        ("embed*", "model.embed_tokens", False),
        ("embed*", "Embedding", False),
        ("gate", "mlp.gate", False),
        ("last:gate", "mlp.gate", True),
        ("last:gate", "mlp.gate_proj", False),
    ],
)
def test_a_pattern_after_last_is_for_as_many_last_parts_as_it_has_and_others_for_the_whole_name(
    pattern, module, fits
):
    assert Patterns([pattern]).fit(module) is fits


def test_the_order_of_the_list_counts_whatever_the_kind_of_pattern():
    patterns = Patterns(["x.*", "last:fc", "a.fc", "a.*"])

    assert [patterns.find(name) for name in ("a.fc", "x.fc", "a.b", "c")] == [1, 0, 3, None]


@given(st.lists(st.one_of(shell_patterns, shell_patterns.map("last:{}".format)), max_size=4), st.lists(names))
def test_idle_patterns_are_those_that_fit_no_name_by_themselves(patterns, modules):
    idle = [n for n, pattern in enumerate(patterns) if not any(map(Patterns([pattern]).fit, modules))]

    assert Patterns(patterns).idle(modules) == idle


def test_only_patterns_with_wildcards_and_different_names_have_a_price():
    assert matching_ns(["abc", "abc"], ["abc"] * 9) == 0
    price = partial(glob.matching_ns, names=2, characters=4)
    assert matching_ns(["*b", "c?*"], ["abc", "x"]) == price("*b") + price("c?*")
    assert matching_ns(["last:*"], ["a.fc", "b.fc", "c.FC"]) == glob.matching_ns("*", names=1, characters=2)
