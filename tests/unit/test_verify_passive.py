"""What each check tells of a host's samples, and what makes it warn or fail; whom `verify` takes for busy."""

from __future__ import annotations

import io

import pytest

from gpuhost_exporter.collectors import (
    driver,
    fabric,
    gpu,
    gpu_health,
    inventory,
    machine,
    nvlink,
    nvme,
    nvme_health,
    pcie,
    platform,
    raid,
    rdma,
    rdma_ethernet,
    targets,
    xid,
)
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.findings import find_each
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.verify import command, passive
from gpuhost_exporter.verify.measurement import Asked, Measurement
from gpuhost_exporter.verify.result import Result

NOW = 1795361000.0
GPU = ("0", "GPU-0")


def info(spec, **labels):
    return spec(*(labels.get(name, "") for name in spec.labels))


WELL = (
    driver.NVML_STATE("ok"),
    info(driver.DRIVER_INFO, driver_version="580.65.06", cuda_version="13.0"),
    driver.GPUS_ON_BUS(value=1),
    driver.GPU_UP(*GPU),
    driver.GPU_STATE(*GPU, "ok"),
    info(driver.GPU_INFO, gpu=GPU[0], uuid=GPU[1], vbios="96.00.A5.00.01"),
    inventory.PRESENT("gpus", value=1),
    inventory.GPUS_EXPECTED(value=1),
    *(
        spec(kind, value=2)
        for kind in ("drives", "arrays", "ports")
        for spec in (inventory.PRESENT, inventory.EXPECTED)
    ),
    xid.EVENTS(*GPU, "critical", value=0),
    gpu_health.ECC_ENABLED(*GPU),
    gpu_health.REMAP_FAILED(*GPU, value=0),
    nvlink.USABLE(*GPU, value=900e9),
    targets.NVLINK_BANDWIDTH(*GPU, value=900e9),
    fabric.STATE(*GPU, "completed"),
    *(pcie.GENERATION_MAX(*GPU, part, value=5) for part in ("link", "device")),
    *(pcie.WIDTH_MAX(*GPU, part, value=16) for part in ("link", "device")),
    pcie.WIDTH(*GPU, value=16),
    gpu_health.POWER_LIMIT(*GPU, value=700),
    gpu_health.POWER_LIMIT_DEFAULT(*GPU, value=700),
    gpu_health.POWER_LIMIT_LOWERED(*GPU, value=0),
    gpu_health.CLOCKS_LOCKED(*GPU, value=0),
    gpu.SM_CLOCK_MAX(*GPU, value=1.98e9),
    gpu.THROTTLE_ACTIVE(*GPU, "hw_thermal", value=0),
    gpu_health.PERSISTENCE(*GPU),
    nvme.UP("nvme0"),
    *(spec("nvme0", value=5) for spec in (nvme.GENERATION, nvme.GENERATION_MAX)),
    *(spec("nvme0", value=4) for spec in (nvme.WIDTH, nvme.WIDTH_MAX)),
    nvme_health.WEAR("nvme0", value=0.03),
    raid.UP("md0"),
    raid.MEMBERS("md0", "active", value=4),
    raid.EXPECTED("md0", value=4),
    rdma.UP("mlx5_0", "1"),
    rdma.RATE("mlx5_0", "1", value=50e9),
    targets.ROCE_PORT(value=12.5e9),
    info(rdma.INFO, device="mlx5_0", port="1", numa_node="0"),
    info(pcie.PCIE_INFO, gpu=GPU[0], uuid=GPU[1], numa_node="0"),
    platform.VIRTUALIZED("none", value=0),
    platform.EVIDENCE("cpuid", "hypervisor bit not set", value=0),
    *(platform.IOMMU(mode, value=mode == "passthrough") for mode in ("off", "passthrough", "translated")),
    platform.SWITCH_PORTS("enabled", value=0),
    platform.SWITCH_PORTS("disabled", value=16),
    info(machine.INFO, kernel="6.8.0-57-generic"),
    xid.KERNEL_LOG_UP(),
)


def checked(samples, rates=()):
    """Later samples of a series count. By check and device."""
    latest, moved = Latest(samples), Latest(rates)
    return {
        (result.check, result.device): result for result in passive.check(latest, moved, find_each(latest, moved, NOW))
    }


def test_a_host_that_is_well_passes_every_check():
    found = checked(WELL)
    assert {result.verdict for result in found.values()} == {"pass"}
    assert {check for check, _ in found} == {name for name, _, _ in passive.CHECKS}
    assert not [result for result in found.values() if result.why]


NAMED = {
    ("driver", ""): ("580.65.06", ""),
    ("XIDs", "GPU 0"): ("none", "none"),
    ("GPU memory", "GPU 0"): ("ECC on, remap good", "on, good"),
    ("PCIe", "GPU 0"): ("5 x16", "5 x16"),
    ("power limit", "GPU 0"): ("700 W", "700 W"),
    ("clocks", "GPU 0"): ("free", "up to 1980 MHz"),
    ("RDMA ports", "mlx5_0 port 1"): ("400 Gb/s", "100 Gb/s"),
    ("platform", ""): ("bare metal", "bare metal"),
    ("platform", "IOMMU"): ("passthrough", "off, passthrough"),
    ("platform", "ACS"): ("16 disabled", "none enabled"),
    ("versions", "CUDA"): ("13.0", ""),
}


def test_what_is_measured_and_wanted_is_told_in_the_fields_words():
    found = checked(WELL)
    assert {key: (found[key].measured, found[key].wanted) for key in NAMED} == NAMED


SECOND = {"gpu": "1", "uuid": "GPU-1"}
XID_79 = (xid.LAST(*GPU, "79", value=NOW - 60), info(xid.INFO, xid="79", severity="critical"))


@pytest.mark.parametrize(
    ("where", "verdict", "why", "samples"),
    [
        ("driver", "fail", "differ in version", [driver.NVML_STATE("ok", value=0), driver.NVML_STATE("mismatch")]),
        ("GPUs", "fail", "takes 1 of the 2", [driver.GPUS_ON_BUS(value=2)]),
        ("inventory/S6K1", "warn", "it was here before", [info(inventory.MISSING, kind="drives", device="S6K1")]),
        ("GPUs", "fail", "fewer than expected", [inventory.GPUS_EXPECTED(value=8)]),
        ("inventory/drives", "warn", "fewer than expected", [inventory.EXPECTED("drives", value=3)]),
        ("inventory/ports", "fail", "fewer than expected", [inventory.EXPECTED("ports", value=3)]),
        (
            "inventory/mlx5_1/1",
            "fail",
            "it was here before",
            [info(inventory.MISSING, kind="ports", device="mlx5_1/1")],
        ),
        ("XIDs/GPU 0", "fail", "XID 79", XID_79),
        ("GPU memory/GPU 0", "fail", "could not be replaced", [gpu_health.REMAP_FAILED(*GPU)]),
        ("GPU memory/GPU 0", "warn", "ECC is off", [gpu_health.ECC_ENABLED(*GPU, value=0)]),
        ("NVLink/GPU 0", "fail", "collectives go over PCIe", [nvlink.USABLE(*GPU, value=0)]),
        (
            "NVLink fabric/GPU 0",
            "fail",
            "no NVLink",
            [fabric.STATE(*GPU, "completed", value=0), fabric.STATE(*GPU, "in_progress")],
        ),
        ("PCIe/GPU 0", "warn", "8 of 16 lanes", [pcie.WIDTH(*GPU, value=8)]),
        (
            "PCIe/GPU 0",
            "warn",
            "the slot has 8 lanes only",
            [pcie.WIDTH(*GPU, value=8), pcie.WIDTH_MAX(*GPU, "link", value=8)],
        ),
        ("PCIe/GPU 0", "warn", "the slot takes generation 4 only", [pcie.GENERATION_MAX(*GPU, "link", value=4)]),
        (
            "power limit/GPU 0",
            "warn",
            "500 / 700 W",
            [gpu_health.POWER_LIMIT(*GPU, value=500), gpu_health.POWER_LIMIT_LOWERED(*GPU)],
        ),
        ("clocks/GPU 0", "warn", "clocks are locked", [gpu_health.CLOCKS_LOCKED(*GPU)]),
        ("throttling/GPU 0", "fail", "slowed down now", [gpu.THROTTLE_ACTIVE(*GPU, "hw_thermal")]),
        ("modes/GPU 0", "pass", "persistence mode is off", [gpu_health.PERSISTENCE(*GPU, value=0)]),
        ("drives/nvme0", "fail", "takes no I/O", [nvme.UP("nvme0", value=0)]),
        ("drives/nvme0", "warn", "no answer for 3.0 s", [nvme_health.IN_FLIGHT("nvme0", value=3)]),
        ("arrays/md0", "warn", "3 of 4 members", [raid.MEMBERS("md0", "active", value=3)]),
        ("RDMA ports/mlx5_0 port 1", "warn", "slower than the target", [rdma.RATE("mlx5_0", "1", value=1.25e9)]),
        ("RDMA ports/mlx5_0 port 1", "warn", "down; nothing goes over it", [rdma.UP("mlx5_0", "1", value=0)]),
        (
            "RDMA ports/mlx5_0 port 1",
            "fail",
            "down; nothing goes over it",
            [rdma.UP("mlx5_0", "1", value=0), rdma.ERRORS("mlx5_0", "1", "link_downed", value=2)],
        ),
        ("NUMA/GPU 1", "warn", "no RDMA port on its node", [info(pcie.PCIE_INFO, **SECOND, numa_node="1")]),
        ("platform", "warn", "a virtual machine by ", [platform.VIRTUALIZED("kvm")]),
        (
            "platform/IOMMU",
            "pass",
            "translates",
            [platform.IOMMU("passthrough", value=0), platform.IOMMU("translated")],
        ),
        ("platform/ACS", "pass", "through the CPU", [platform.SWITCH_PORTS("enabled", value=4)]),
        ("versions/VBIOS", "warn", "GPUs differ", [info(driver.GPU_INFO, **SECOND, vbios="96.00.74")]),
    ],
)
def test_each_check_says_what_is_wrong_and_the_others_stay_as_they_are(where, verdict, why, samples):
    accuses(where, verdict, why, checked((*WELL, *samples)))


@pytest.mark.parametrize(
    ("where", "verdict", "why", "rate"),
    [
        ("throttling/GPU 0", "warn", "20 % of the time", gpu.THROTTLED(*GPU, "hw_thermal", value=0.2)),
        ("RDMA ports/mlx5_0 port 1", "fail", "makes it pause", rdma_ethernet.PAUSE("mlx5_0", "3", value=0.1)),
    ],
)
def test_what_only_a_rate_shows_is_told(where, verdict, why, rate):
    accuses(where, verdict, why, checked(WELL, [rate]))


UNREAD = "the kernel log, which holds those of before, cannot be read"


def test_no_xid_is_not_good_news_where_the_kernel_log_cannot_be_read():
    found = checked((*WELL, xid.KERNEL_LOG_UP(value=0)))
    assert (found["XIDs", "GPU 0"].verdict, found["XIDs", "GPU 0"].why) == ("skipped", UNREAD)
    assert found["exporter", "Kernel log"].verdict == "warn"
    others = {key: result.verdict for key, result in found.items() if key[0] not in ("XIDs", "exporter")}
    assert set(others.values()) == {"pass"}


def test_an_xid_that_the_driver_told_counts_though_the_kernel_log_cannot_be_read():
    found = checked((*WELL, *XID_79, xid.KERNEL_LOG_UP(value=0)))
    assert (found["XIDs", "GPU 0"].verdict, found["XIDs", "GPU 0"].measured) == ("fail", "XID 79")


def accuses(where, verdict, why, found):
    check, _, device = where.partition("/")
    assert found[check, device].verdict == verdict
    assert why in found[check, device].why
    assert {name for (name, _), result in found.items() if result.verdict != "pass"} <= {check}
    assert {name for name, _ in found} == {name for name, _, _ in passive.CHECKS}


def test_a_virtual_machine_is_told_with_its_evidence_and_owes_nothing_to_iommu_and_acs():
    found = checked((
        platform.VIRTUALIZED("kvm"),
        platform.EVIDENCE("cpuid", "hypervisor bit set"),
        platform.EVIDENCE("dmi", "Standard PC (Q35 + ICH9, 2009)"),
        platform.EVIDENCE("nvml", "none", value=0),
        platform.IOMMU("translated"),
        platform.SWITCH_PORTS("enabled", value=2),
    ))  # fmt: skip
    verdict = found["platform", ""]
    assert (verdict.verdict, verdict.measured) == ("warn", "virtual machine (kvm)")
    assert verdict.why == "a virtual machine by cpuid (hypervisor bit set), dmi (Standard PC (Q35 + ICH9, 2009))"
    assert [(found["platform", part].verdict, found["platform", part].wanted) for part in ("IOMMU", "ACS")] == [
        ("pass", "")
    ] * 2


def test_what_nothing_tells_is_skipped_with_a_reason_and_never_passes():
    found = checked([])
    assert {result.verdict for result in found.values()} == {"skipped"}
    assert all(result.why for result in found.values())
    assert [check for check, _ in found] == [name for name, _, _ in passive.CHECKS]


# Whom measuring would disturb.


def idle(index):
    labels = (index, f"GPU-{index}")
    return driver.GPU_UP(*labels), gpu.PROCESSES(*labels, value=0), gpu.UTILIZATION(*labels, value=0.0)


IDLE = (*idle("0"), *idle("1"))


@pytest.mark.parametrize(
    ("samples", "indexes"),
    [
        pytest.param([], [], id="idle"),
        pytest.param([gpu.PROCESSES("1", "GPU-1", value=2)], ["1"], id="a process that waits"),
        pytest.param([gpu.UTILIZATION("0", "GPU-0", value=0.5)], ["0"], id="work of processes that cannot be seen"),
        pytest.param([gpu.UTILIZATION("0", "GPU-0", value=0.02)], [], id="what our own look costs"),
    ],
)
def test_a_gpu_is_busy_by_its_processes_or_its_work(samples, indexes):
    assert command.busy(Latest((*IDLE, *samples))) == indexes


class Live:
    latest = Latest((*IDLE, gpu.PROCESSES("1", "GPU-1")))

    def look(self):
        pass


def measure(while_busy, planned):
    options = command.Options("quick", Asked(), while_busy, new_baseline=False, as_json=True, junit=None)
    return list(command._measure(Live(), planned, options))


def test_a_busy_gpu_is_left_alone_unless_told_otherwise(monkeypatch):
    started = []
    done = Result("storage write", "md0", "pass")

    def run(_waiting):
        started.append("fio")
        return [done]

    monkeypatch.setattr("sys.stderr", io.StringIO())
    planned = [Measurement("fio", 1.0, run), Result("NCCL all-reduce", "", "skipped", why="one GPU only")]
    with pytest.raises(ConfigError, match=r"GPUs 1 are in use and nothing was measured; .*--while-busy"):
        measure(False, planned)
    assert started == []
    assert measure(True, planned) == [done, planned[1]]
    assert started == ["fio"]
    assert measure(False, planned[1:]) == planned[1:], "where nothing is measured nobody is disturbed"
