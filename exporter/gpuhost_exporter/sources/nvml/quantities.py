"""NVML's numbers as SI units, held against what hardware can do: a GPU that is going bad answers 4 GW or 2^32-1.

Bounds are generous, about ten times what any product reaches: they catch garbage, not faults.
"""

from __future__ import annotations

from typing import NamedTuple

from gpuhost_exporter.errors import Malformed


class Quantity(NamedTuple):
    """`low` and `high` are in the unit that comes out, `scale` leads from NVML's unit to it."""

    unit: str
    scale: float
    low: float
    high: float

    def of(self, raw: object) -> float:
        if isinstance(raw, (int, float)):
            value = raw * self.scale
            if self.low <= value <= self.high:  # false for NaN
                return value
        raise Malformed(f"expected {self.unit} between {self.low:g} and {self.high:g}, got {raw!r:.40}")

    def whole(self, raw: object) -> int:
        """The same without a fraction, exact beyond 2^53."""
        self.of(raw)
        if isinstance(raw, int):
            return raw * int(self.scale)
        raise Malformed(f"expected a whole number of {self.unit}, got {raw!r:.40}")


PERCENT = Quantity("ratio", 0.01, 0, 1.05)  # GPM rounds a little above 100
MILLIWATTS = Quantity("watts", 1e-3, 0, 20e3)
MILLIJOULES = Quantity("joules", 1e-3, 0, 1e13)
CELSIUS = Quantity("celsius", 1, -60, 200)
MARGIN_CELSIUS = Quantity("celsius", 1, -200, 300)
MEGAHERTZ = Quantity("hertz", 1e6, 0, 50e9)
NANOSECONDS = Quantity("seconds", 1e-9, 0, 3.2e9)
BYTES = Quantity("bytes", 1, 0, 2.0**50)
COUNTED_BYTES = Quantity("bytes", 1, 0, 2.0**63)
COUNTED_KIBIBYTES = Quantity("bytes", 1024, 0, 2.0**68)
MEBIBYTES_PER_SECOND = Quantity("bytes per second", 2**20, 0, 10e12)
MEGABYTES_PER_SECOND = Quantity("bytes per second", 1e6, 1e6, 10e12)
COUNT = Quantity("events", 1, 0, 2.0**62)
BITS = Quantity("bits", 1, 1, 65536)
PCIE_GENERATION = Quantity("generation", 1, 1, 10)
PCIE_LANES = Quantity("lanes", 1, 1, 64)
LINKS = Quantity("links", 1, 0, 144)
SWITCH = Quantity("0 or 1", 1, 0, 1)
ENUM = Quantity("enumerator", 1, 0, 255)
MASK = Quantity("bits", 1, 0, 2.0**32 - 1)
PID = Quantity("process id", 1, 1, 2**22)
XID = Quantity("XID", 1, 0, 2.0**31 - 1)
