"""What the ledger decides by: start values to be calibrated on real GPUs, each settable in `[ledger]`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from gpuhost_exporter.config import CollectorSettings
from gpuhost_exporter.errors import ConfigError

LONGEST_INTERVAL = 2.0  # seconds: what is told more seldom comes too late for what is settled, and is unknown


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Ratios 0-1, bytes per second of the busier direction, seconds, bytes, cores."""

    gap_ratio: float = 0.1  # an idle share up to this is the gaps between kernels, not a stall
    spin_sm_ratio: float = 0.35  # SM activity while busy; one communication kernel keeps about 0.15 of them
    math_tensor_ratio: float = 0.01  # below it no tensor work
    spin_memory_ratio: float = 0.02
    link_bytes_per_second: float = 20e9  # NVLink that moves a collective's data
    network_bytes_per_second: float = 1e9  # the same over PCIe, as network adapters and GPUs without NVLink do
    quiet_bytes_per_second: float = 0.5e9  # up to this links carry polling and logging only
    classic_busy_ratio: float = 0.95  # without profiling counters: utilization of a GPU that spins
    classic_power_ratio: float = 0.35  # and its power, of the limit
    classic_seconds: float = 60.0  # for so long
    copy_bytes_per_second: float = 0.25e9  # out of an idle GPU over PCIe: a copy to the host
    write_bytes_per_second: float = 50e6  # of a job, above what it writes all the time
    upload_bytes_per_second: float = 50e6  # that the host sends after copies out of a job's GPUs, whoever sends it
    read_bytes_per_second: float = 20e6  # of a job, while its GPU is idle
    checkpoint_bytes: float = 256e6
    checkpoint_quiet_seconds: float = 2.0
    startup_tensor_seconds: float = 10.0
    idle_limit_seconds: float = 600.0  # a start or a launch-bound pause that takes longer is a GPU held idle
    holder_cores: float = 0.5
    hang_seconds: float = 30.0
    straggler_ratio: float = 1.15  # SM activity while busy, over the median of the job's GPUs
    straggler_seconds: float = 30.0

    @classmethod
    def load(cls, chosen: Mapping[str, float]) -> Thresholds:
        """The start values with the site's in their place. Raises ConfigError, naming the key."""
        known = tuple(item.name for item in fields(cls))
        for key, value in chosen.items():
            if key not in known:
                raise ConfigError(f"unknown key ledger.{key}; known here: {', '.join(known)}")
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"ledger.{key}: expected a number above 0, got {value!r}")
        return replace(cls(), **chosen)


def check_intervals(collectors: Mapping[str, CollectorSettings]) -> None:
    """Raises ConfigError where a site reads its GPUs too seldom for a ledger that is on."""
    ledger = collectors.get("ledger")
    if ledger and ledger.enabled is False:
        return
    for name in ("gpu", "ledger"):
        chosen = collectors.get(name)
        if chosen and chosen.interval and chosen.interval > LONGEST_INTERVAL:
            raise ConfigError(
                f"collector.{name}.interval: expected at most {LONGEST_INTERVAL:g} seconds, got {chosen.interval:g}; "
                "longer only with collector.ledger.enabled = false"
            )
