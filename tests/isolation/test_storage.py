"""What arrays deliver under demand, from the real process on simulated hosts."""

from __future__ import annotations

import time

import pytest
from support.daemon import Daemon, select, value
from support.simulated import arguments

LIMITED = "gpuhost_storage_limited_seconds_total"
SECONDS = "gpuhost_storage_saturated_seconds_total"
BYTES = "gpuhost_storage_saturated_bytes_total"


def limited(series, device="md0"):
    return {by: value(series, LIMITED, device=device, by=by) for by in ("array", "member", "submitter")}


def booked(series, by):
    return (value(series, LIMITED, device="md0", by=by) or 0) >= 3


def rate(series, direction):
    labels = {"device": "md0", "direction": direction}
    return value(series, BYTES, **labels) / value(series, SECONDS, **labels)


def test_one_slow_member_is_named_with_what_the_array_delivers(tmp_path):
    with Daemon(tmp_path, *arguments(tmp_path, "h100x8", "array-slow", elapsed=25)) as daemon:
        daemon.get("/")
        series = daemon.wait_until(lambda found: booked(found, "member"))
        assert rate(series, "read") == pytest.approx(3.1e9, rel=0.06)
        assert limited(series)["array"] == limited(series)["submitter"] == 0
        held = select(series, "gpuhost_storage_member_limited_seconds_total", device="md0")
        assert {dict(key)["member"] for key, seconds in held.items() if seconds} == {"nvme2n1"}
        target = {"device": "md0", "direction": "read", "band": "good"}
        assert value(series, "gpuhost_storage_target_bytes_per_second", **target) == 20e9
        assert limited(series, "md127") == {"array": 0, "member": 0, "submitter": 0}
        page = daemon.get("/")[1].decode()
        assert "<h1>md0: waits for nvme2n1: reads 3." in page


def test_an_array_that_is_slow_as_a_whole_is_array_limited(tmp_path):
    with Daemon(tmp_path, *arguments(tmp_path, "h100x8", "checkpoint-stall", elapsed=22)) as daemon:
        daemon.get("/")
        series = daemon.wait_until(lambda found: booked(found, "array"))
        assert rate(series, "write") == pytest.approx(3.5e9, rel=0.06)
        assert limited(series)["member"] == limited(series)["submitter"] == 0
        assert "<h1>md0: too slow: writes 3." in daemon.get("/")[1].decode()


def test_a_buffered_checkpoint_on_a_healthy_array_is_the_submitters_limit(tmp_path):
    with Daemon(tmp_path, *arguments(tmp_path, "h100x8", "checkpoint-sync", elapsed=29)) as daemon:
        series = daemon.wait_until(lambda found: booked(found, "submitter"))
        assert limited(series)["array"] == limited(series)["member"] == 0
        assert not any(select(series, SECONDS, device="md0").values())


@pytest.mark.parametrize(("scenario", "elapsed"), [("steady", 10), ("array-degraded", 25)])
def test_nothing_is_booked_while_the_arrays_keep_up(tmp_path, scenario, elapsed):
    with Daemon(tmp_path, *arguments(tmp_path, "h100x8", scenario, elapsed=elapsed)) as daemon:
        daemon.ready()
        time.sleep(4)
        series = daemon.series()
        assert {dict(key)["device"] for key in select(series, LIMITED)} == {"md0", "md127"}
        assert not any(select(series, LIMITED).values())
        assert not any(select(series, SECONDS).values())
        degraded = value(series, "gpuhost_array_members", device="md127", state="active")
        assert degraded == (1 if scenario == "array-degraded" else 2)
        assert not select(series, "gpuhost_storage_target_bytes_per_second", device="md127"), "the system's mirror"
        assert "too slow" not in daemon.get("/")[1].decode()


def test_mounts_show_their_drives_and_their_simulated_room(tmp_path):
    with Daemon(tmp_path, "--simulate=h100x8") as daemon:
        series = daemon.wait_until(lambda found: select(found, "gpuhost_filesystem_free_bytes", mountpoint="/data"))
        drives = select(series, "gpuhost_filesystem_drive_info", mountpoint="/data")
        assert {dict(key)["device"] for key in drives} == {f"nvme{number}n1" for number in range(4)}
        size, free = (
            value(series, f"gpuhost_filesystem_{name}_bytes", mountpoint="/data") for name in ("size", "free")
        )
        assert 0 < free < size == pytest.approx(4 * 7.68e12, rel=0.01)
        assert {dict(key)["mountpoint"] for key in select(series, "gpuhost_filesystem_size_bytes")} == {
            "/",
            "/boot/efi",
            "/data",
        }, "no mount of the machine that simulates"
