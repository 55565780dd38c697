"""NVMe drives as a real kernel has them, held against nvme-cli, /proc/diskstats and sysfs of the same moment."""

from __future__ import annotations

import time

import pytest
from support.daemon import select, value
from vm.machine import EXPORTER, TWICE, GuestError

READ = "gpuhost_nvme_lifetime_read_bytes_total"
# nvme-cli's name of a field, and what one of it is in the metric's unit.
SMART = {
    "gpuhost_nvme_wear_ratio": ("percent_used", 0.01),
    "gpuhost_nvme_spare_ratio": ("avail_spare", 0.01),
    "gpuhost_nvme_spare_threshold_ratio": ("spare_thresh", 0.01),
    "gpuhost_nvme_media_errors_total": ("media_errors", 1),
    "gpuhost_nvme_unsafe_shutdowns_total": ("unsafe_shutdowns", 1),
    "gpuhost_nvme_power_cycles_total": ("power_cycles", 1),
    "gpuhost_nvme_power_on_seconds_total": ("power_on_hours", 3600),
    READ: ("data_units_read", 512_000),
}
WARNINGS = (
    "spare_low",
    "temperature",
    "reliability_degraded",
    "read_only",
    "backup_failed",
    "persistent_memory_unreliable",
)
NEXT_LOOK = 75  # seconds until the health log was read once more


def smart(machine, drive):
    log = machine.json(f"nvme smart-log /dev/{drive.controller} -o json")
    return {name: int(log[field]) * unit for name, (field, unit) in SMART.items()}


def told(series, names, device):
    return {name: value(series, name, device=device) for name in names}


def sectors(machine, *devices):
    """(read, written) bytes of these devices together, from /proc/diskstats."""
    lines = [line.split() for line in machine.run("cat /proc/diskstats").splitlines()]
    counts = [(int(words[5]) * 512, int(words[9]) * 512) for words in lines if words[2] in devices]
    assert len(counts) == len(devices)
    return tuple(map(sum, zip(*counts, strict=True)))


def moved(series, device):
    return tuple(value(series, f"gpuhost_block_{way}_bytes_total", device=device) for way in ("read", "written"))


def test_a_drive_that_is_plugged_in_shows_within_five_seconds_as_the_tools_show_it(machine, drives):
    drive = drives("new")
    machine.wait_until(lambda series: value(series, "gpuhost_nvme_up", device=drive.controller) == 1, 5)
    machine.wait_until(lambda series: value(series, "gpuhost_nvme_health_readable", device=drive.controller) == 1, 5)
    kept = SMART.keys() - {READ}  # the kernel and udev go on reading the new drive; the log is asked once a minute
    machine.agree(
        lambda: {name: pytest.approx(figure) for name, figure in smart(machine, drive).items() if name in kept},
        lambda series: told(series, kept, drive.controller),
    )
    identity = machine.json(f"nvme id-ctrl /dev/{drive.controller} -o json")
    series = machine.series()
    (info,) = map(dict, select(series, "gpuhost_nvme_info", device=drive.controller))
    assert (info["model"], info["serial"], info["firmware"]) == tuple(
        identity[key].strip() for key in ("mn", "sn", "fr")
    )
    folder = f"/sys/class/nvme/{drive.controller}"
    address, speed, width = machine.run(
        f"cat {folder}/address {folder}/device/current_link_{{speed,width}}"
    ).splitlines()
    assert (info["address"], info["transport"]) == (address, "pcie")
    assert speed == "2.5 GT/s PCIe"
    assert value(series, "gpuhost_nvme_pcie_generation", device=drive.controller) == 1
    assert value(series, "gpuhost_nvme_pcie_width", device=drive.controller) == int(width)
    size = int(machine.run(f"blockdev --getsize64 {drive.path}"))
    assert value(series, "gpuhost_block_size_bytes", device=drive.namespace) == size == 256 << 20
    kelvin = machine.json(f"nvme smart-log /dev/{drive.controller} -o json")["temperature"]
    celsius = value(series, "gpuhost_nvme_temperature_celsius", device=drive.controller, sensor="composite")
    assert celsius == pytest.approx(kelvin - 273, abs=0.5)


def test_a_drive_that_is_pulled_is_gone_within_five_seconds_and_comes_back_under_its_series(machine, drives):
    drive = drives("pulled")
    machine.wait_until(lambda series: value(series, "gpuhost_nvme_health_readable", device=drive.controller) == 1, 10)
    machine.run(
        "until grep -rq pulled /var/lib/gpuhost-exporter; do sleep 0.2; done", 30
    )  # what was never seen is not missed
    began = time.monotonic()
    machine.unplug("pulled")
    machine.wait_until(
        lambda series: (
            value(series, "gpuhost_inventory_missing", kind="drives", device="pulled") == 1
            and not any({("device", drive.controller), ("device", drive.namespace)} & {*labels} for _, labels in series)
        ),
        10,
    )
    assert time.monotonic() - began < 5 * machine.slowness
    machine.plug("pulled", "nvme", drive="pulled", serial="pulled")
    again = machine.find_drive("pulled")
    machine.wait_until(
        lambda series: (
            value(series, "gpuhost_nvme_up", device=again.controller) == 1
            and not select(series, "gpuhost_inventory_missing", device="pulled")
        ),
        10,
    )


def test_bytes_and_operations_under_fio_are_those_of_diskstats(machine, drives):
    drive = drives("busy")
    load = machine.start(
        f"fio --name=load --filename={drive.path} --rw=randrw --bs=64k --iodepth=8 --ioengine=libaio --direct=1 "
        "--runtime=12 --time_based"
    )
    time.sleep(2)
    for way, column in (("read", 0), ("written", 1)):
        metric = f"gpuhost_block_{way}_bytes_total"
        machine.between(
            lambda column=column: sectors(machine, drive.namespace)[column],
            lambda series, metric=metric: value(series, metric, device=drive.namespace),
        )
    load.result()
    machine.agree(lambda: sectors(machine, drive.namespace), lambda series: moved(series, drive.namespace))


def test_a_critical_warning_is_told_as_nvme_cli_tells_it(machine, drives):
    drive = drives("warned")
    machine.wait_until(lambda series: value(series, "gpuhost_nvme_health_readable", device=drive.controller) == 1, 10)

    def raised():
        bits = machine.json(f"nvme smart-log /dev/{drive.controller} -o json")["critical_warning"]
        return {name for bit, name in enumerate(WARNINGS) if bits >> bit & 1}

    def shown(series):
        found = select(series, "gpuhost_nvme_critical_warning", device=drive.controller)
        assert len(found) == len(WARNINGS)
        return {dict(labels)["warning"] for labels, on in found.items() if on}

    assert raised() == shown(machine.series()) == set()
    machine.qmp("qom-set", path="/machine/peripheral/warned", property="smart_critical_warning", value=0b1101)
    machine.agree(raised, shown, NEXT_LOOK)
    machine.agree(
        lambda: pytest.approx(smart(machine, drive)), lambda series: told(series, SMART, drive.controller), NEXT_LOOK
    )
    assert raised() == {"spare_low", "reliability_degraded", "read_only"}
    assert f"{drive.controller}: the drive takes no more writes" in machine.get("/")[1]


def test_a_bad_sector_is_an_error_to_who_reads_it_and_counted_as_the_drive_counts_it(machine, drives):
    drive = drives("scratched", 64, {"event": "none", "iotype": "read", "errno": 5, "sector": 65536})
    with pytest.raises(GuestError, match="error reading"):
        machine.run(f"dd if={drive.path} of=/dev/null bs=4k skip=8192 count=1 iflag=direct")
    assert f"critical medium error, dev {drive.namespace}, sector 65536" in machine.run("dmesg | tail")
    machine.agree(lambda: sectors(machine, drive.namespace), lambda series: moved(series, drive.namespace))
    machine.agree(
        lambda: smart(machine, drive)["gpuhost_nvme_media_errors_total"],
        lambda series: value(series, "gpuhost_nvme_media_errors_total", device=drive.controller),
    )
    assert value(machine.series(), "gpuhost_nvme_up", device=drive.controller) == 1


def test_a_drive_with_two_paths_counts_once_and_goes_on_with_one(machine):
    drive = machine.find_drive(TWICE)
    listed = machine.run(f"cd /sys/class/nvme; ls -d */{drive.namespace.replace('n1', 'c*n1')}").split()
    controllers, paths = zip(*(entry.split("/") for entry in listed), strict=True)
    assert len(paths) == 2, "native multipath"
    machine.run(f"dd if=/dev/urandom of={drive.path} bs=1M count=8 oflag=direct")
    head, below = sectors(machine, drive.namespace), sectors(machine, *paths)
    assert below[1] == 8 << 20, "kernels that count at the head count at the paths as well"
    machine.agree(lambda: head if any(head) else below, lambda series: moved(series, drive.namespace))
    series = machine.series()
    assert not [name for name, labels in series if {("device", path) for path in paths} & {*labels}]
    behind = select(series, "gpuhost_nvme_namespace_info", namespace=drive.namespace)
    assert {dict(labels)["device"] for labels in behind} == set(controllers)
    machine.qmp("device_del", id="path1")
    machine.wait_until(
        lambda found: len(select(found, "gpuhost_nvme_namespace_info", namespace=drive.namespace)) == 1, 10
    )
    machine.run(f"dd if=/dev/urandom of={drive.path} bs=1M count=8 oflag=direct")
    machine.wait_until(lambda found: moved(found, drive.namespace)[1] == 16 << 20, 5)
    machine.qmp("device_add", driver="nvme", id="path1", bus="path1-port", subsys=TWICE, serial=TWICE)
    machine.wait_until(
        lambda found: len(select(found, "gpuhost_nvme_namespace_info", namespace=drive.namespace)) == 2, 10
    )
    assert moved(machine.series(), drive.namespace)[1] == 16 << 20, "no byte is counted twice when it comes back"


def test_without_privileges_what_needs_none_is_told_and_what_is_missing_is_said(machine, drives):
    drive = drives("shut")
    machine.serve(properties=("DynamicUser=yes",))
    try:
        series = machine.wait_until(
            lambda found: value(found, "gpuhost_nvme_health_readable", device=drive.controller) == 0
        )
        assert value(series, "gpuhost_nvme_up", device=drive.controller) == 1
        assert value(series, "gpuhost_nvme_temperature_celsius", device=drive.controller, sensor="composite")
        assert value(series, "gpuhost_block_size_bytes", device=drive.namespace)
        assert not select(series, "gpuhost_nvme_wear_ratio")
        assert not select(series, "gpuhost_nvme_critical_warning")
        said = machine.run(f"setpriv --reuid=nobody --clear-groups {EXPORTER} doctor; true")
        assert "CAP_SYS_ADMIN" in said
        assert "/dev/nvme" in said
    finally:
        machine.serve()
