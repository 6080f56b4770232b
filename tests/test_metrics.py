"""Metric values combine rightly, in any order."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruppo.metrics import Last, Max, Mean, Min, Stats, Sum

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8)


def test_the_mean_of_parts_is_the_mean_of_all():
    assert Mean(3.0, 3).merge(Mean(0.0, 1)).value() == 0.75


def test_a_mean_leaves_nan_out_and_is_nan_when_empty():
    assert Mean.of([1.0, math.nan, 3.0]) == Mean(4.0, 2)
    assert math.isnan(Mean.of([math.nan]).value())
    assert Mean.of([math.nan]).merge(Mean.of([2.0])).value() == 2.0


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        (Sum(1.0), Sum(2.0), 3.0),
        (Max(1.0), Max(2.0), 2.0),
        (Max(math.nan), Max(2.0), 2.0),
        (Max(2.0), Max(math.nan), 2.0),
        (Min(1.0), Min(2.0), 1.0),
        (Min(math.nan), Min(2.0), 2.0),
        (Last(1.0), Last(2.0), 2.0),
    ],
)
def test_each_kind_merges_in_its_way(first, second, value):
    assert first.merge(second).value() == value


@given(numbers, st.integers(0, 8))
def test_where_a_list_is_cut_does_not_matter(values, cut):
    for kind, whole in ((Mean.of, sum(values) / len(values)), (lambda v: Sum(sum(v)), sum(values))):
        merged = kind(values[:cut]).merge(kind(values[cut:]))
        assert merged.value() == pytest.approx(whole, abs=1e-6)


def test_stats_merge_by_name_and_keep_their_order():
    stats = Stats()
    stats.add({"b": Mean(1.0, 1)})
    stats.add(Stats({"a": Last(1.0), "b": Mean(3.0, 1)}))
    assert list(stats.values().items()) == [("b", 2.0), ("a", 1.0)]
    stats.clear()
    assert stats.values() == {}


def test_a_name_that_changes_its_kind_is_our_bug():
    stats = Stats({"a": Mean(1.0, 1)})
    with pytest.raises(AssertionError, match="a: "):
        stats.add({"a": Sum(1.0)})
