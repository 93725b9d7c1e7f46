"""`state.times`: times and their text."""

from hypothesis import given
from hypothesis import strategies as st

from state.times import microseconds, rfc3339


@given(st.integers(min_value=0, max_value=4_000_000_000_000_000))
def test_a_time_survives_its_text_to_the_microsecond(time):
    assert microseconds(rfc3339(time)) == time


@given(st.lists(st.integers(min_value=0, max_value=4_000_000_000_000_000), min_size=2))
def test_times_sort_as_text(times):
    assert sorted(map(rfc3339, times)) == list(map(rfc3339, sorted(times)))
