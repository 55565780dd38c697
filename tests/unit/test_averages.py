"""Our median is the standard library's."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.averages import median


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1))
def test_the_median_is_the_one_of_the_standard_library(values):
    assert median(values) == statistics.median(values)
