"""Garbage never becomes a reading."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources.nvml import quantities
from gpuhost_exporter.sources.nvml.quantities import Quantity

ALL = sorted((name, value) for name, value in vars(quantities).items() if isinstance(value, Quantity))

GOOD = [
    (quantities.PERCENT, 97, 0.97),
    (quantities.MILLIWATTS, 412_345, 412.345),
    (quantities.MILLIJOULES, 1500, 1.5),
    (quantities.CELSIUS, 61, 61),
    (quantities.MARGIN_CELSIUS, -3, -3),
    (quantities.MEGAHERTZ, 1980, 1.98e9),
    (quantities.NANOSECONDS, 2_400_000_000, 2.4),
    (quantities.MEBIBYTES_PER_SECOND, 2.0, 2 * 1048576),
    (quantities.MEGABYTES_PER_SECOND, 26562, 26.562e9),
]


@pytest.mark.parametrize(("quantity", "raw", "value"), GOOD, ids=lambda part: str(part)[:24])
def test_nvml_units_become_si(quantity, raw, value):
    assert quantity.of(raw) == pytest.approx(value)


def test_kibibytes_stay_exact_beyond_two_to_the_53():
    assert quantities.COUNTED_KIBIBYTES.whole(2**55 + 1) == (2**55 + 1) * 1024


BAD = [
    (quantities.MILLIWATTS, 4_000_000_000_000),
    (quantities.MILLIWATTS, 2**32 - 1),
    (quantities.CELSIUS, 2**32 - 1),
    (quantities.CELSIUS, -274),
    (quantities.PERCENT, 255),
    (quantities.PERCENT, math.nan),
    (quantities.MEBIBYTES_PER_SECOND, math.inf),
    (quantities.COUNTED_KIBIBYTES, -1),
    (quantities.COUNTED_BYTES, 2**64 - 1),
    (quantities.COUNT, 2**64 - 1),
    (quantities.MEGAHERTZ, 2**32 - 1),
    (quantities.PCIE_GENERATION, 0),
    (quantities.PCIE_LANES, 255),
    (quantities.MEGABYTES_PER_SECOND, 0),
    (quantities.PID, 0),
    (quantities.CELSIUS, "61"),
    (quantities.CELSIUS, None),
]


@pytest.mark.parametrize(("quantity", "raw"), BAD, ids=lambda part: str(part)[:24])
def test_garbage_is_malformed(quantity, raw):
    with pytest.raises(Malformed):
        quantity.of(raw)
    with pytest.raises(Malformed):
        quantity.whole(raw)


@given(raw=st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.binary()), which=st.sampled_from(ALL))
def test_whatever_comes_back_is_in_bounds_or_malformed(raw, which):
    _, quantity = which
    try:
        value = quantity.of(raw)
    except Malformed:
        return
    assert quantity.low <= value <= quantity.high
