"""The platform as samples: on each simulated host, and where it is broken."""

from __future__ import annotations

import pytest
from support.fakes import FakeClock
from support.gpus import FakeNvml, gpu
from test_virtualization import MACHINES
from trees import host_at, values

from gpuhost_exporter.collectors.platform import PlatformCollector
from gpuhost_exporter.collectors.rdma import RdmaCollector
from gpuhost_exporter.sim import catalogue, control
from gpuhost_exporter.sim.tree import Tree
from gpuhost_exporter.sources import placement
from gpuhost_exporter.sources.files import Root


def simulated(folder, name, scenario="steady"):
    """A host whose GPUs are the simulated ones, as NVML would tell them."""
    clock = FakeClock()
    path = str(folder / "control.json")
    control.create(path, name, scenario, clock)
    clock.time += 30
    Tree(path, str(folder / "root"), clock).write()
    spec = catalogue.host(name)
    host = host_at(folder / "nothing", {})
    host.root = Root.below(str(folder / "root"))
    mode = {0: "none", 1: "passthrough"}[spec.virtualization]
    gpus = [gpu(each.index, bdf=each.pci.bdf, virtualization_mode=mode) for each in spec.gpus]
    host.nvml = FakeNvml(*gpus)
    if spec.driver:
        host.nvml.versions = host.nvml.versions.__class__(spec.driver.version, "", None)
    host.registers.put(placement.Registers(placement.switch_ports(host.root)))
    list(RdmaCollector(host).poll(0.0))
    return host


def told(host):
    return values(PlatformCollector(host).poll(0.0))


def current(found, name):
    return [labels[0] for (key, *labels), value in found.items() if key == name and value]


@pytest.mark.parametrize(
    ("name", "virtual", "iommu", "ports", "gpudirect", "manager"),
    [
        ("h100x8", ("none", 0), ["passthrough"], 16, {"peer_memory": 1, "dma_buf": 1}, 1),
        ("mig", ("none", 0), ["passthrough"], 16, {"peer_memory": 1, "dma_buf": 1}, 1),
        ("l40s", ("none", 0), ["translated"], None, {}, None),
        ("vm", ("kvm", 1), ["off"], None, {}, None),
        ("oldkernel", ("none", 0), [], 16, {"peer_memory": 0, "dma_buf": 0}, None),
        ("nogpu", ("none", 0), [], None, {}, None),
    ],
)
def test_each_simulated_host_is_what_it_is(tmp_path, name, virtual, iommu, ports, gpudirect, manager):
    found = told(simulated(tmp_path, name))
    assert found["virtualized", virtual[0]] == virtual[1]
    assert sum(key[0] == "virtualized" for key in found) == 1
    assert current(found, "iommu_mode") == iommu
    assert found.get(("pci_switch_ports", "disabled")) == ports
    assert {key[1]: value for key, value in found.items() if key[0] == "gpudirect_rdma_available"} == gpudirect
    assert found.get(("fabric_manager_up",)) == manager
    assert found.get(("fabric_manager_matches_driver",)) == manager
    low = 0.65 if virtual[1] else 0.9
    assert found["expected_utilization_ratio", "low"] == low


def test_each_gpu_of_an_hgx_board_has_its_adapter_behind_the_same_switch(tmp_path):
    found = told(simulated(tmp_path, "h100x8"))
    pairs = {key[1:] for key in found if key[0] == "gpu_rdma_affinity_info"}
    assert pairs == {(str(n), f"GPU-{n}", f"mlx5_{n}", "switch") for n in range(8)}
    nodes = {key[1]: value for key, value in found.items() if key[0] == "numa_node"}
    assert len(nodes) == 8 + 9 + 6
    assert (nodes["gpu0"], nodes["gpu7"], nodes["mlx5_8"], nodes["nvme3"]) == (0, 1, 0, 1)


def test_a_virtual_machine_has_evidence_from_every_source_that_tells(tmp_path):
    found = told(simulated(tmp_path, "vm"))
    assert {key[1:]: value for key, value in found.items() if key[0] == "virtualization_evidence"} == {
        ("cpuid", "hypervisor bit set"): 1,
        ("clock", "kvm-clock"): 1,
        ("dmi", "Standard PC (Q35 + ICH9, 2009)"): 1,
        ("nvml", "passthrough"): 1,
        ("steal", "CPU time was stolen"): 1,
    }
    assert not [key for key in found if key[0] in ("cpu_governor_policies", "cpu_idle_exit_latency_seconds")]


def test_a_fabric_manager_that_does_not_run_is_told_with_the_version_that_it_had(tmp_path):
    found = told(simulated(tmp_path, "h100x8", "fabric-broken"))
    assert found["fabric_manager_up",] == 0
    assert found["fabric_manager_info", "580.65.06"] == 1


def test_a_fabric_manager_of_another_version_does_not_match(tmp_path):
    host = simulated(tmp_path, "h100x8")
    host.nvml.versions = host.nvml.versions.__class__("580.95.05", "", None)
    assert told(host)["fabric_manager_matches_driver",] == 0


@pytest.mark.parametrize(
    ("name", "bit", "evidence", "verdict"),
    [
        ("h100x8", None, None, ("none", 0)),
        ("h100x8", False, 0, ("none", 0)),
        ("h100x8", True, 1, ("unknown", 1)),
        ("vm", False, 0, ("kvm", 1)),
        ("vm", True, 1, ("kvm", 1)),
    ],
    ids=["not told", "metal", "a guest whose CPU hides it", "a guest that SMBIOS does not mark", "a guest"],
)
def test_the_firmwares_own_word_counts_for_a_guest_and_hardly_against_one(tmp_path, name, bit, evidence, verdict):
    host = simulated(tmp_path, name)
    host.registers.put(placement.Registers(virtual_machine=bit))
    found = told(host)
    assert (
        next((value for key, value in found.items() if key[:2] == ("virtualization_evidence", "smbios")), None)
        == evidence
    )
    assert found["virtualized", verdict[0]] == verdict[1]


def test_registers_that_nobody_may_read_are_unreadable_not_disabled(tmp_path):
    host = simulated(tmp_path, "h100x8")
    ports = placement.switch_ports(host.root)
    host.registers.put(placement.Registers(tuple(placement.SwitchPort(port.bdf, None) for port in ports)))
    found = told(host)
    assert [found["pci_switch_ports", acs] for acs in ("enabled", "disabled", "unreadable")] == [0, 0, 16]
    host.registers.fail("unavailable", "ended")
    assert not [key for key in told(host) if key[0] == "pci_switch_ports"]


@pytest.mark.parametrize("name", MACHINES)
def test_the_verdict_and_the_band_follow_the_machine(tmp_path, name):
    files, virtual, hypervisor = MACHINES[name]
    found = told(host_at(tmp_path, files | {"proc/stat": "cpu  1 0 1 1 1 1 1 0 0 0\n"}))
    assert found["virtualized", hypervisor] == virtual
    assert found["container", "none"] == 0
    assert found["expected_utilization_ratio", "high"] == (0.85 if virtual else 0.97)


def test_a_machine_that_tells_nothing_has_no_verdict_and_no_band(tmp_path):
    found = told(host_at(tmp_path, {"proc/stat": "cpu  1 0 1 1 1 1 1 0 0 0\n"}))
    assert not [key for key in found if key[0] in ("virtualized", "expected_utilization_ratio")]
