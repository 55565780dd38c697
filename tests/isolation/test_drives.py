"""Drives that go, come and hang, in the real process over real HTTP.

The faults of a scenario come 20 s after its start; a test begins shortly before.
"""

from __future__ import annotations

import time

import pytest
from support.daemon import Daemon, select, value
from support.simulated import arguments

from gpuhost_exporter.sources.linux import CAP_SYS_ADMIN, CAP_SYSLOG

PULLED = {("device", "nvme1"), ("device", "nvme1n1")}
WITHIN = 5.0  # seconds, though the drives' own collectors poll every 15 and 60


@pytest.fixture
def start(tmp_path):
    running = []

    def run(scenario, *more, elapsed=0.0):
        running.append(Daemon(tmp_path, *arguments(tmp_path, "h100x8", scenario, elapsed=elapsed), *more))
        return running[-1]

    yield run
    for daemon in running:
        daemon.stop()


def healthy(series):
    return {dict(key)["device"] for key in select(series, "gpuhost_nvme_wear_ratio")}


def of_the_pulled(series):
    """Names of the drive's own series; the array's tell of it on purpose."""
    return {
        name for name, key in series if PULLED & set(key) and not name.startswith(("gpuhost_array", "gpuhost_storage"))
    }


def measured(series):
    """What storage is measured as: arrays, and the members of md0."""
    members = {dict(key)["member"] for key in select(series, "gpuhost_storage_member_limited_seconds_total")}
    return {dict(key)["device"] for key in select(series, "gpuhost_storage_saturated_seconds_total")}, members


def test_a_pulled_drive_takes_its_series_along_within_seconds_and_brings_them_back(start):
    daemon = start("drive-pulled", elapsed=8.0)
    whole = daemon.wait_until(lambda seen: len(healthy(seen)) == 6, 10)
    names = of_the_pulled(whole)
    assert {
        "gpuhost_nvme_up",
        "gpuhost_nvme_wear_ratio",
        "gpuhost_nvme_pcie_width",
        "gpuhost_block_size_bytes",
    } <= names
    arrays, members = measured(whole)
    assert (arrays, "nvme1n1" in members) == ({"md0", "md127"}, True)
    daemon.wait_until(lambda seen: "udev: remove nvme nvme1" in daemon.log(), 20)
    gone = daemon.wait_until(
        lambda seen: (
            value(seen, "gpuhost_inventory_missing", kind="drives") == 1
            and not of_the_pulled(seen)
            and measured(seen) == (arrays, members - {"nvme1n1"})
            and value(seen, "gpuhost_array_up", device="md0") == 0
        ),
        WITHIN,
    )
    assert value(gone, "gpuhost_array_member_up", device="md0", member="nvme1n1") == 0
    assert value(gone, "gpuhost_array_up", device="md127") == 1
    assert healthy(gone) == {"nvme0", "nvme2", "nvme3", "nvme4", "nvme5"}
    daemon.command("simulate", "steady", "--control", str(daemon.folder / "control.json"))
    daemon.wait_until(lambda seen: "udev: add nvme nvme1" in daemon.log(), 10)
    back = daemon.wait_until(
        lambda seen: (
            of_the_pulled(seen) == names
            and measured(seen) == (arrays, members)
            and not select(seen, "gpuhost_inventory_missing")
        ),
        WITHIN,
    )
    assert value(back, "gpuhost_array_up", device="md0") == 1


def test_a_drive_that_hangs_costs_its_own_health_and_nothing_else(start):
    daemon = start("drive-hung", elapsed=21.0)
    name = "gpuhost_nvme_health_in_flight_seconds"
    first = daemon.wait_until(lambda seen: (value(seen, name, device="nvme1") or 0) > 0, 10)
    assert healthy(first) == {"nvme0", "nvme2", "nvme3", "nvme4", "nvme5"}
    slowest, later = 0.0, first
    deadline = time.monotonic() + 20
    while (value(later, name, device="nvme1") or 0) < 6:
        assert time.monotonic() < deadline
        begin = time.monotonic()
        later = daemon.series()
        slowest = max(slowest, time.monotonic() - begin)
        time.sleep(0.2)
    assert slowest < 1.0
    assert value(later, "gpuhost_nvme_health_readable", device="nvme1") == 0
    assert value(later, "gpuhost_nvme_up", device="nvme1") == 1, "its blocks are still served"
    assert value(later, "gpuhost_collector_up", collector="nvme_health") == 1
    assert value(later, "gpuhost_collector_in_flight_seconds", collector="nvme_health") == 0
    assert value(later, "gpuhost_kernel_log_up") == 1
    for device in ("nvme0", "nvme2", "nvme3", "nvme4", "nvme5"):
        assert value(later, "gpuhost_nvme_health_readable", device=device) == 1
        assert value(later, name, device=device) == 0
    begin = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begin < 5


def capabilities(daemon):
    (pid,) = [pid for pid, name in daemon.descendants().items() if name.startswith("gpuhost-priv")]
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapPrm:"))
    return {number for number in range(64) if held >> number & 1}


@pytest.mark.parametrize(
    ("flags", "needed"),
    [((), {CAP_SYSLOG, CAP_SYS_ADMIN}), (("--no-collector.nvme_health",), {CAP_SYSLOG})],
    ids=["on", "off"],
)
def test_the_reader_holds_the_drives_capability_only_while_their_collector_is_on(start, flags, needed):
    with open("/proc/self/status", encoding="ascii") as status:
        own = next(int(line.split()[1], 16) for line in status if line.startswith("CapPrm:"))
    daemon = start("steady", "--no-collector.ledger", "--no-collector.platform", *flags)
    series = daemon.wait_until(lambda seen: value(seen, "gpuhost_kernel_log_up") == 1, 10)
    assert capabilities(daemon) == {number for number in needed if own >> number & 1}
    if flags:
        assert not [name for name, _ in series if name.startswith("gpuhost_nvme_health")]
