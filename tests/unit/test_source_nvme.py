"""NVMe controllers as sysfs shows them."""

from __future__ import annotations

import contextlib
import errno

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import fail_opening, plant, vanish_opening

from gpuhost_exporter.errors import Absent, Denied, Gone, Malformed, SourceError, Unsupported
from gpuhost_exporter.sources import nvme
from gpuhost_exporter.sources.nvme import Temperature

CONTROLLER = {
    "sys/class/nvme/nvme0/state": "live\n",
    "sys/class/nvme/nvme0/model": "SAMSUNG MZQL23T8HCLS-00A07              \n",
    "sys/class/nvme/nvme0/serial": "S6CKNE0W500123      \n",
    "sys/class/nvme/nvme0/firmware_rev": "GDC5902Q\n",
    "sys/class/nvme/nvme0/transport": "pcie\n",
    "sys/class/nvme/nvme0/address": "0000:41:00.0\n",
    "sys/class/nvme/nvme0/numa_node": "0\n",
    "sys/class/nvme/nvme0/subsysnqn": "nqn.1994-11.com.samsung:nvme:PM9A3\n",
    "sys/class/nvme/nvme0/nvme0n1/nsid": "1\n",
}


def test_a_controller_is_read_whole_with_padding_stripped(tmp_path):
    root = plant(tmp_path, CONTROLLER)
    assert nvme.controllers(root) == ("nvme0",)
    assert nvme.read(root, "nvme0") == nvme.Controller(
        name="nvme0",
        state="live",
        model="SAMSUNG MZQL23T8HCLS-00A07",
        serial="S6CKNE0W500123",
        firmware="GDC5902Q",
        transport="pcie",
        address="0000:41:00.0",
        numa_node=0,
        subsystem="nqn.1994-11.com.samsung:nvme:PM9A3",
        namespaces=("nvme0n1",),
    )


def test_without_nvme_there_are_no_controllers(tmp_path):
    assert nvme.controllers(plant(tmp_path, {})) == ()


def test_only_controllers_are_listed(tmp_path):
    root = plant(tmp_path, {f"sys/class/nvme/{name}/state": "live" for name in ("nvme0", "nvme10", "nvme-x", "ng0n1")})
    assert nvme.controllers(root) == ("nvme0", "nvme10")


@pytest.mark.parametrize(
    ("entries", "namespaces"),
    [
        (("nvme0n1", "nvme0n2"), ("nvme0n1", "nvme0n2")),
        (("nvme3c0n1",), ("nvme3n1",)),
        (("ng0n1", "hwmon3", "power", "nvme0n1p1"), ()),
    ],
    ids=["namespaces", "a multipath path names another subsystem's number", "other entries"],
)
def test_namespaces_are_resolved_by_folder_not_by_number(tmp_path, entries, namespaces):
    files = {"sys/class/nvme/nvme0/state": "live\n"}
    files |= {f"sys/class/nvme/nvme0/{entry}/uevent": "" for entry in entries}
    assert nvme.read(plant(tmp_path, files), "nvme0").namespaces == namespaces


def test_a_numa_node_of_minus_one_is_not_told(tmp_path):
    root = plant(tmp_path, CONTROLLER | {"sys/class/nvme/nvme0/numa_node": "-1\n"})
    assert nvme.read(root, "nvme0").numa_node is None


def test_identity_that_is_not_told_is_none(tmp_path):
    drive = nvme.read(plant(tmp_path, {"sys/class/nvme/nvme0/state": "dead\n"}), "nvme0")
    assert drive == nvme.Controller("nvme0", "dead", None, None, None, None, None, None, None, ())


@pytest.mark.parametrize(
    ("number", "error"), [(errno.EACCES, Denied), (errno.ENODEV, Gone), (errno.EINVAL, Unsupported)]
)
def test_a_state_that_cannot_be_read_is_an_error(tmp_path, monkeypatch, number, error):
    root = plant(tmp_path, CONTROLLER)
    fail_opening(monkeypatch, "nvme0/state", number)
    with pytest.raises(error):
        nvme.read(root, "nvme0")


def test_a_controller_without_a_state_file_is_absent_not_gone(tmp_path):
    with pytest.raises(Absent):
        nvme.read(plant(tmp_path, {"sys/class/nvme/nvme0/model": "X\n"}), "nvme0")


def test_a_controller_that_vanishes_before_or_while_it_is_read_is_gone(tmp_path, monkeypatch):
    root = plant(tmp_path, CONTROLLER)
    vanish_opening(monkeypatch, "/model", tmp_path / "sys/class/nvme/nvme0")
    with pytest.raises(Gone):
        nvme.read(root, "nvme0")
    with pytest.raises(Gone):
        nvme.read(root, "nvme0")


SENSORS = {"name": "nvme\n", "temp1_input": "43850\n", "temp1_crit": "84850\n", "temp3_input": "-1150\n"}
READ = (Temperature("composite", 43.85), Temperature("2", -1.15))


@pytest.mark.parametrize(
    "folder", ["hwmon3", "device/hwmon/hwmon3"], ids=["below the controller", "below the PCI device"]
)
def test_temperatures_are_found_where_either_kernel_puts_them(tmp_path, folder):
    files = {f"sys/class/nvme/nvme0/{folder}/{file}": text for file, text in SENSORS.items()}
    assert nvme.temperatures(plant(tmp_path, files), "nvme0") == READ


def test_another_chips_monitor_is_not_the_drives(tmp_path):
    files = {"sys/class/nvme/nvme0/device/hwmon/hwmon1/name": "jc42\n"}
    files["sys/class/nvme/nvme0/device/hwmon/hwmon1/temp1_input"] = "30000\n"
    assert nvme.temperatures(plant(tmp_path, files), "nvme0") == ()


def test_a_drive_without_a_monitor_has_no_temperatures(tmp_path):
    assert nvme.temperatures(plant(tmp_path, CONTROLLER), "nvme0") == ()


@pytest.mark.parametrize("text", ["", "hot", "43.5"], ids=["truncated", "garbage", "a fraction"])
def test_a_sensor_that_reads_no_number_is_malformed(tmp_path, text):
    files = {"sys/class/nvme/nvme0/hwmon0/name": "nvme\n", "sys/class/nvme/nvme0/hwmon0/temp1_input": text}
    with pytest.raises(Malformed, match="expected a number"):
        nvme.temperatures(plant(tmp_path, files), "nvme0")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(content=st.binary(max_size=200))
def test_any_bytes_in_every_file_are_a_reading_or_a_source_error(tmp_path, content):
    root = plant(tmp_path, CONTROLLER | {f"sys/class/nvme/nvme0/hwmon3/{file}": text for file, text in SENSORS.items()})
    for file in (*CONTROLLER, *(f"sys/class/nvme/nvme0/hwmon3/temp{n}_input" for n in (1, 3))):
        (tmp_path / file).write_bytes(content)
    for read in (nvme.read, nvme.temperatures):
        with contextlib.suppress(SourceError):
            read(root, "nvme0")
