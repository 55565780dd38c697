"""Series of a host with eight H100, everything switched on: what a fleet pays for, times the number of hosts."""

from __future__ import annotations

import pytest
from support.daemon import Daemon

from gpuhost_exporter.collectors import ALL

BUDGET = 4500


@pytest.mark.parametrize("scenario", ["steady", "checkpoint-sync", "array-slow"])
def test_everything_on_stays_within_4500_series(tmp_path, scenario):
    everything = [f"--collector.{kind.name}" for kind in ALL]
    with Daemon(tmp_path, f"--simulate=h100x8:{scenario}", *everything) as daemon:
        daemon.ready()
        series = daemon.wait_until(lambda found: any(name == "gpuhost_gpu_time_seconds_total" for name, _ in found))
        assert 2000 < len(series) <= BUDGET
