"""Placement of devices, what the IOMMU and ACS do to their traffic, and how far CPUs may sleep."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import Link, plant

from gpuhost_exporter.errors import Denied, Malformed
from gpuhost_exporter.sources import placement
from gpuhost_exporter.sources.placement import PrivilegedRegisters, Registers, SwitchPort, parse_redirects

GPU, NIC = "0000:1b:00.0", "0000:18:00.0"
SWITCH = "pci0000:15/0000:15:01.0/0000:16:00.0"


def device(bdf, above, **files):
    folder = f"sys/devices/{above}/{bdf}"
    own = {"numa_node": "0", **files}
    return {
        f"sys/bus/pci/devices/{bdf}": Link(f"../../../devices/{above}/{bdf}"),
        **{f"{folder}/{name}": f"{text}\n" for name, text in own.items()},
    }


def gpu(above, **files):
    return device(GPU, above, vendor="0x10de", **{"class": "0x030200"}, **files)


@pytest.mark.parametrize(
    ("gpu_above", "nic_above", "node", "path"),
    [
        (f"{SWITCH}/0000:17:01.0", f"{SWITCH}/0000:17:00.0", "0", "switch"),
        ("pci0000:15/0000:15:01.0", "pci0000:15/0000:15:01.0", "0", "switch"),
        (f"{SWITCH}/0000:17:01.0/0000:18:00.0/0000:19:00.0", f"{SWITCH}/0000:17:00.0", "0", "switches"),
        ("pci0000:15/0000:15:01.0", "pci0000:15/0000:15:02.0", "0", "host_bridge"),
        ("pci0000:15/0000:15:01.0", "pci0000:37/0000:37:01.0", "0", "node"),
        ("pci0000:15/0000:15:01.0", "pci0000:97/0000:97:01.0", "1", "system"),
        ("pci0000:15/0000:15:01.0", "pci0000:97/0000:97:01.0", "-1", "system"),
    ],
    ids=["one switch", "one slot", "switches in a row", "one host bridge", "one CPU", "two CPUs", "not told"],
)
def test_what_is_between_a_gpu_and_an_adapter(tmp_path, gpu_above, nic_above, node, path):
    root = plant(tmp_path, gpu(gpu_above) | device(NIC, nic_above, numa_node=node))
    assert placement.path_between(root, GPU, NIC) == path
    assert placement.path_between(root, NIC, GPU) == path


def test_gpus_adapters_and_drives_have_a_node_unless_the_firmware_is_silent(tmp_path):
    files = gpu("pci0000:15", numa_node="1") | device(NIC, "pci0000:15") | device("0000:2a:00.0", "pci0000:28")
    files |= {
        "sys/class/infiniband/mlx5_0/device": Link(f"../../../devices/pci0000:15/{NIC}"),
        "sys/class/nvme/nvme0/device": Link("../../../devices/pci0000:28/0000:2a:00.0"),
        "sys/class/nvme/nvme1/device/numa_node": "-1\n",
        "sys/class/infiniband/rxe0/node_type": "1: CA\n",
    }
    assert placement.numa_nodes(plant(tmp_path, files), {"gpu0": GPU}) == {"gpu0": 1, "mlx5_0": 0, "nvme0": 0}


ON = {"sys/class/iommu/dmar0/uevent": "", "sys/kernel/iommu_groups/7/type": ""}


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        ({}, "off"),
        (ON | gpu("pci0000:15", **{"iommu_group/type": "identity"}), "passthrough"),
        (ON | gpu("pci0000:15", **{"iommu_group/type": "DMA-FQ"}), "translated"),
        (ON | gpu("pci0000:15", **{"iommu_group/type": "DMA"}), "translated"),
        (ON | gpu("pci0000:15") | {"proc/cmdline": "quiet iommu=pt ro\n"}, "passthrough"),
        (ON | gpu("pci0000:15") | {"proc/cmdline": "quiet intel_iommu=on\n"}, None),
    ],
    ids=["off", "identity", "flush queue", "strict", "old kernel told so", "old kernel not told"],
)
def test_how_the_iommu_treats_a_gpu(tmp_path, files, mode):
    assert placement.iommu_mode(plant(tmp_path, files), [GPU]) == mode


def test_one_translated_gpu_is_a_translated_host(tmp_path):
    files = ON | gpu("pci0000:15", **{"iommu_group/type": "identity"})
    files |= device(NIC, "pci0000:15", **{"iommu_group/type": "DMA"})
    root = plant(tmp_path, files)
    assert placement.iommu_mode(root, [GPU]) == "passthrough"
    assert placement.iommu_mode(root, [GPU, NIC]) == "translated"


def space(control, *, chain=((0x100, 0x0001, 0x150), (0x150, 0x000D, 0))):
    config = bytearray(4096)
    for place, capability, following in chain:
        struct.pack_into("<IHH", config, place, capability | 1 << 16 | following << 20, 0x5F, control)
    return bytes(config)


@pytest.mark.parametrize(
    ("config", "redirects"),
    [
        (space(0x0000), False),
        (space(0x001D), True),
        (space(0x0001), True),
        (space(0x0004), True),
        (space(0x0002), False),
        (space(0x001D, chain=((0x100, 0x0001, 0),)), False),
        (space(0x001D)[:256], False),
    ],
    ids=["off", "as Linux sets it", "validation", "redirect", "blocking", "no ACS", "no extended space"],
)
def test_acs_sends_peer_traffic_upwards_or_does_not(config, redirects):
    assert parse_redirects(config) is redirects


def test_what_an_ordinary_user_gets_of_the_registers_is_denied_not_disabled():
    with pytest.raises(Denied, match="CAP_SYS_ADMIN"):
        parse_redirects(space(0x001D)[:64])


@pytest.mark.parametrize(
    "config", [space(0, chain=((0x100, 0x0001, 0x100),)), b"\xff" * 4096], ids=["leads back to itself", "gone"]
)
def test_registers_that_no_device_has_are_malformed_not_disabled(config):
    with pytest.raises(Malformed):
        parse_redirects(config)


@given(st.binary(max_size=600))
def test_any_registers_parse_or_are_refused(config):
    with contextlib.suppress(Denied, Malformed):
        parse_redirects(config)


def test_only_downstream_ports_of_switches_are_looked_at_and_each_once(tmp_path):
    ports = {"0000:17:00.0": space(0x1D), "0000:17:01.0": space(0), "0000:17:02.0": space(0x1D)[:64]}
    files = gpu(f"{SWITCH}/0000:17:00.0") | device(NIC, f"{SWITCH}/0000:17:01.0")
    files |= device("0000:1c:00.0", f"{SWITCH}/0000:17:00.0", vendor="0x10de", **{"class": "0x030200"})
    files |= device("0000:1d:00.0", f"{SWITCH}/0000:17:02.0", vendor="0x10de", **{"class": "0x030200"})
    files["sys/class/infiniband/mlx5_0/device"] = Link(f"../../../devices/{SWITCH}/0000:17:01.0/{NIC}")
    root = plant(tmp_path, files)
    for bdf, config in ports.items():
        folder = tmp_path / f"sys/devices/{SWITCH}/{bdf}"
        (folder / "config").write_bytes(config)
        (tmp_path / f"sys/bus/pci/devices/{bdf}").symlink_to(folder)
    assert set(placement.switch_ports(root)) == {
        SwitchPort("0000:17:00.0", redirects=True),
        SwitchPort("0000:17:01.0", redirects=False),
        SwitchPort("0000:17:02.0", redirects=None),
    }


def test_a_machine_without_switches_has_no_ports(tmp_path):
    assert placement.switch_ports(plant(tmp_path, gpu("pci0000:15/0000:15:01.0"))) == ()
    assert placement.switch_ports(plant(tmp_path / "none", {})) == ()


def test_what_was_found_is_forgotten_when_the_reader_ends():
    registers = PrivilegedRegisters()
    assert registers.told() == Registers()
    registers.put(Registers((SwitchPort("0000:17:00.0", redirects=True),), virtual_machine=False))
    assert len(registers.told().switch_ports) == 1
    registers.fail("unavailable", "ended")
    assert registers.told() == Registers()


def test_governors_are_counted_and_idle_states_that_are_off_left_out(tmp_path):
    cpu = "sys/devices/system/cpu"
    files = {f"{cpu}/cpufreq/policy{number}/scaling_governor": "performance\n" for number in range(3)}
    files |= {f"{cpu}/cpufreq/policy3/scaling_governor": "powersave\n", f"{cpu}/cpufreq/boost": "1\n"}
    for number, (name, latency, off) in enumerate((("POLL", 0, 0), ("C1", 1, 0), ("C6", 290, 1))):
        state = f"{cpu}/cpu0/cpuidle/state{number}"
        files |= {f"{state}/name": f"{name}\n", f"{state}/latency": f"{latency}\n", f"{state}/disable": f"{off}\n"}
    root = plant(tmp_path, files)
    assert placement.governors(root) == {"performance": 3, "powersave": 1}
    assert placement.idle_states(root) == {"POLL": 0.0, "C1": 1e-6}


def test_a_kernel_that_scales_nothing_tells_nothing(tmp_path):
    root = plant(tmp_path, {})
    assert (dict(placement.governors(root)), placement.idle_states(root)) == ({}, {})
