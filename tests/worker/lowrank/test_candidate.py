"""worker.lowrank.candidate: the search for the least rank."""

import math

import pytest

from worker.lowrank.candidate import smallest_rank


@pytest.mark.parametrize(
    ("start", "ceiling", "first"), [(1, 1, 1), (1, 50, 1), (3, 50, 4), (3, 50, 37), (3, 50, 50)]
)
def test_the_search_finds_the_first_rank_that_holds_in_few_trials(start, ceiling, first):
    tried = []

    def attempt(rank):
        tried.append(rank)
        return rank

    assert smallest_rank(start, ceiling, attempt, lambda rank: rank >= first) == first
    assert len(tried) <= 2 * math.log2(ceiling) + 2
    assert all(start <= rank <= ceiling for rank in tried)


def test_the_search_ends_at_the_ceiling_where_no_rank_holds():
    assert smallest_rank(3, 9, lambda rank: rank, lambda rank: rank > 9) == 9
