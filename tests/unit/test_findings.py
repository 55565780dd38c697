"""What is said to be wrong, from the samples that show it, and what is not said."""

from __future__ import annotations

import pytest

from gpuhost_exporter import advice
from gpuhost_exporter.collectors import (
    driver,
    fabric,
    gpu,
    gpu_health,
    inventory,
    nvlink,
    nvme,
    nvme_health,
    pcie,
    raid,
    rdma,
    targets,
    xid,
)
from gpuhost_exporter.findings import Finding, find, ranges
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.runner import ERRORS, IN_FLIGHT, UP
from gpuhost_exporter.sources.nvme_health import WARNINGS
from gpuhost_exporter.xids import Catalogue

GPU = ("3", "GPU-3")
NOW = 1795361000.0


def found(*samples):
    return [(finding.severity, str(finding)) for finding in find(Latest(samples), Latest(()), NOW)]


def driver_is(state):
    return driver.NVML_STATE(state)


def gpu_is(state, *labels):
    return driver.GPU_UP(*(labels or GPU), value=state == "ok"), driver.GPU_STATE(*(labels or GPU), state)


def xid_seen(code, *, count=1, severity="critical", action="", ago=0.0):
    return (
        xid.ERRORS(*GPU, code, value=count),
        xid.INFO(code, "of this kind", severity, action),
        xid.LAST(*GPU, code, value=NOW - ago),
    )


HEALTHY = (
    driver.GPUS_ON_BUS(value=1),
    driver_is("ok"),
    driver.NVML_STATE("hung", value=0),
    *gpu_is("ok"),
    driver.GPU_STATE(*GPU, "lost", value=0),
    gpu_health.RECOVERY_ACTION(*GPU, "none"),
    gpu_health.REMAP_FAILED(*GPU, value=0),
    gpu_health.ECC_ENABLED(*GPU),
    gpu_health.ECC_ERRORS(*GPU, "uncorrected", value=0),
    gpu_health.REMAP_BANKS(*GPU, "none", value=0),
    gpu_health.PERSISTENCE(*GPU),
    nvlink.ACTIVE(*GPU, value=18),
    nvlink.EXPECTED(*GPU, value=18),
    nvlink.FALLBACK_PEERS(*GPU, value=0),
    fabric.STATE(*GPU, "completed"),
    fabric.STATUS(*GPU, value=0),
    fabric.HEALTH(*GPU, "healthy"),
    gpu.THROTTLE_ACTIVE(*GPU, "sw_thermal", value=0),
    gpu.UTILIZATION(*GPU, value=0.95),
    gpu.USERS(*GPU, value=1),
    pcie.WIDTH(*GPU, value=16),
    pcie.WIDTH_MAX(*GPU, "link", value=16),
    pcie.GENERATION(*GPU, value=5),
    pcie.GENERATION_MAX(*GPU, "link", value=5),
    targets.PRODUCT_KNOWN(*GPU),
    xid.ERRORS(*GPU, "79", value=0),
    xid.INFO("79", "GPU has fallen off the bus", "critical", ""),
    raid.UP("md0"),
    raid.EXPECTED("md0", value=4),
    raid.MEMBERS("md0", "active", value=4),
    raid.SYNC("md1", "idle"),
    nvme.UP("nvme0"),
    nvme.WIDTH("nvme0", value=4),
    nvme.WIDTH_MAX("nvme0", value=4),
    nvme.TEMPERATURE("nvme0", "composite", value=40),
    *(nvme_health.WARNING("nvme0", name, value=0) for name in WARNINGS),
    nvme_health.WEAR("nvme0", value=0.9),
    nvme_health.MEDIA_ERRORS("nvme0", value=0),
    nvme_health.IN_FLIGHT("nvme0", value=2),
    rdma.UP("mlx5_0", "1"),
    xid.KERNEL_LOG_UP(),
    inventory.STATE_WRITABLE(),
    UP("gpu"),
    IN_FLIGHT("gpu", value=0.2),
    ERRORS("gpu", "transient", value=3),
)


def test_a_healthy_host_has_no_findings():
    assert found(*HEALTHY) == []


def test_nothing_told_is_nothing_found():
    assert found() == []


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (gpu_is("lost"), ("critical", "GPU 3: lost: it fell off the bus")),
        (gpu_is("needs_reset"), ("critical", "GPU 3: needs a reset")),
        (gpu_is("missing"), ("critical", "GPU 3: missing: it was here and is not listed any more")),
        ([driver_is("hung")], ("critical", "Driver: a call into the driver does not return")),
        ([driver_is("mismatch")], ("critical", "Driver: library and loaded driver differ in version")),
        ([driver_is("released")], ("info", "Driver: NVML is released by request")),
        ([driver_is("no_gpus")], ("info", "No GPU is expected on this host")),
        (
            [driver_is("no_gpus"), inventory.GPUS_EXPECTED(value=8)],
            ("critical", "Driver: the driver sees no GPU"),
        ),
        ([driver_is("no_driver")], ("critical", "Driver: the driver is not loaded")),
        ([driver_is("no_driver"), driver.GPUS_ON_BUS(value=0)], ("info", "No GPU is expected on this host")),
        (
            [driver_is("no_library"), driver.GPUS_ON_BUS(value=8)],
            ("critical", "8 NVIDIA GPUs on the PCI bus and no driver"),
        ),
        (
            [driver_is("no_driver"), driver.GPUS_ON_BUS(value=1), inventory.GPUS_EXPECTED(value=1)],
            ("critical", "1 NVIDIA GPU on the PCI bus and the driver is not loaded"),
        ),
        (
            [driver_is("no_gpus"), driver.GPUS_ON_BUS(value=8)],
            ("critical", "8 NVIDIA GPUs on the PCI bus and the driver takes none"),
        ),
        (
            [driver_is("no_gpus"), driver.GPUS_ON_BUS(value=0), inventory.GPUS_EXPECTED(value=8)],
            ("critical", "No NVIDIA GPU on the PCI bus, 8 expected"),
        ),
        (
            [driver_is("ok"), *gpu_is("ok"), driver.GPUS_ON_BUS(value=2)],
            ("critical", "Driver: takes 1 of the 2 NVIDIA GPUs on the PCI bus"),
        ),
        ([driver_is("ok"), driver.IN_FLIGHT(value=45)], ("warning", "Driver: no answer since 45 s")),
        (
            [driver.READER_STUCK(value=1)],
            ("critical", "Driver: a reader hangs in the driver and cannot be killed"),
        ),
        (
            [*gpu_is("ok"), gpu_health.RECOVERY_ACTION(*GPU, "drain_and_reset")],
            ("critical", "GPU 3: the driver asks for a recovery: drain and reset"),
        ),
        (
            [*gpu_is("ok"), gpu_health.REMAP_FAILED(*GPU)],
            ("warning", "GPU 3: a broken memory row could not be replaced"),
        ),
        (
            [*gpu_is("ok"), gpu_health.REMAP_PENDING(*GPU)],
            ("warning", "GPU 3: a memory row waits to be replaced"),
        ),
        ([*gpu_is("ok"), gpu_health.SRAM_THRESHOLD(*GPU)], ("warning", "GPU 3: too many uncorrected SRAM errors")),
        (
            [*gpu_is("ok"), gpu_health.ECC_ENABLED(*GPU, value=0)],
            ("warning", "GPU 3: ECC is off: memory errors stay unseen"),
        ),
        (
            [
                *gpu_is("ok"),
                nvlink.ACTIVE(*GPU, value=17),
                nvlink.EXPECTED(*GPU, value=18),
                nvlink.CAPACITY(*GPU, value=850e9),
                targets.NVLINK_BANDWIDTH(*GPU, value=900e9),
            ],
            ("critical", "GPU 3: 17 of 18 NVLinks active, 850 / 900 GB/s"),
        ),
        (
            [*gpu_is("ok"), fabric.STATE(*GPU, "not_started"), nvlink.FALLBACK_PEERS(*GPU, value=7)],
            ("critical", "GPU 3: no NVLink: registration with the fabric not started"),
        ),
        (
            [*gpu_is("ok"), fabric.STATE(*GPU, "completed"), fabric.STATUS(*GPU, value=999)],
            ("critical", "GPU 3: no NVLink: registration with the fabric ended with NVML error 999"),
        ),
        (
            [*gpu_is("ok"), nvlink.FALLBACK_PEERS(*GPU, value=2), nvlink.SLOWDOWN(*GPU, value=7.1)],
            ("critical", "GPU 3: reaches 2 other GPUs over PCIe only, 7 times slower"),
        ),
        (
            [*gpu_is("ok"), fabric.FINDING(*GPU, "degraded_bandwidth")],
            ("warning", "GPU 3: the NVLink fabric reports: degraded bandwidth"),
        ),
        (
            [*gpu_is("ok"), gpu.THROTTLE_ACTIVE(*GPU, "hw_thermal")],
            ("critical", "GPU 3: slowed down now: hw_thermal"),
        ),
        (
            [*gpu_is("ok"), gpu.THROTTLE_ACTIVE(*GPU, "sw_thermal")],
            ("warning", "GPU 3: slowed down now: sw_thermal"),
        ),
        (
            [*gpu_is("ok"), gpu_health.MIG_ENABLED(*GPU)],
            ("info", "GPU 3: partitioned (MIG), 0 instances"),
        ),
        (
            [
                *gpu_is("ok"),
                gpu_health.MIG_ENABLED(*GPU),
                *(gpu_health.MIG_ENABLED(str(n), f"GPU-{n}", value=0) for n in (0, 1, 2)),
            ],
            ("warning", "GPU 3: partitioned (MIG) though most others are not, 0 instances"),
        ),
        (
            [
                *gpu_is("ok"),
                gpu_health.POWER_LIMIT_LOWERED(*GPU),
                gpu_health.POWER_LIMIT(*GPU, value=400),
                gpu_health.POWER_LIMIT_DEFAULT(*GPU, value=700),
            ],
            ("warning", "GPU 3: power limit lowered, 400 / 700 W"),
        ),
        (
            [*gpu_is("ok"), pcie.WIDTH(*GPU, value=8), pcie.WIDTH_MAX(*GPU, "link", value=16)],
            ("warning", "GPU 3: PCIe runs with 8 of 16 lanes"),
        ),
        (
            [
                *gpu_is("ok"),
                gpu.UTILIZATION(*GPU, value=0.9),
                pcie.GENERATION(*GPU, value=3),
                pcie.GENERATION_MAX(*GPU, "link", value=5),
            ],
            ("warning", "GPU 3: PCIe runs as generation 3 of 5 under load"),
        ),
        (
            [*gpu_is("ok"), *xid_seen("79", count=2, ago=7)],
            (
                "critical",
                "GPU 3: XID 79, of this kind: 2 times since the exporter started, last 22 Nov 15:23:13 UTC",
            ),
        ),
        (
            [*gpu_is("ok"), *xid_seen("79", count=0, ago=7)],
            ("critical", "GPU 3: XID 79, of this kind: once, 22 Nov 15:23:13 UTC"),
        ),
        (
            [*gpu_is("ok"), *xid_seen("79", ago=86400 + 7)],
            ("info", "GPU 3: XID 79, of this kind: once, 21 Nov 15:23:13 UTC"),
        ),
        (
            [*gpu_is("ok"), *xid_seen("68", severity="warning", ago=7)],
            ("warning", "GPU 3: XID 68, of this kind: once, 22 Nov 15:23:13 UTC"),
        ),
        (
            [*gpu_is("needs_reset"), *xid_seen("79", severity="info", action="RESTART_BM")],
            ("critical", "GPU 3: needs a reset that may not reach it: it fell off the bus"),
        ),
        (
            [*gpu_is("ok"), xid.ERRORS(*GPU, "999"), xid.LAST(*GPU, "999", value=NOW - 7)],
            ("warning", "GPU 3: XID 999, not in the catalogue: once, 22 Nov 15:23:13 UTC"),
        ),
        (
            [raid.UP("md0", value=0), raid.EXPECTED("md0", value=4), raid.MEMBERS("md0", "active", value=3)],
            ("critical", "md0: the array does not serve its data: 3 of 4 members active"),
        ),
        (
            [raid.UP("md1"), raid.EXPECTED("md1", value=2), raid.MEMBERS("md1", "active", value=1)],
            ("warning", "md1: runs without redundancy: 1 of 2 members active"),
        ),
        (
            [raid.UP("md1"), raid.SYNC("md1", "resync"), raid.PROGRESS("md1", value=0.4)],
            ("info", "md1: resync under way, 40 % done"),
        ),
        ([nvme.UP("nvme2", value=0)], ("critical", "nvme2: the controller takes no I/O")),
        (
            [nvme.UP("nvme2"), nvme.WIDTH("nvme2", value=2), nvme.WIDTH_MAX("nvme2", value=4)],
            ("warning", "nvme2: slow link: PCIe \N{EN DASH} x2 instead of PCIe \N{EN DASH} x4"),
        ),
        (
            [
                nvme.UP("nvme2"),
                nvme.WIDTH("nvme2", value=2),
                nvme.WIDTH_MAX("nvme2", value=2),
                nvme.DRIVE_WIDTH_MAX("nvme2", value=4),
            ],
            ("warning", "nvme2: in a slot of 2 PCIe lanes, and could use 4"),
        ),
        (
            [nvme.UP("nvme2"), nvme_health.WARNING("nvme2", "read_only", value=1)],
            ("critical", "nvme2: the drive takes no more writes"),
        ),
        (
            [nvme.UP("nvme2"), nvme_health.WARNING("nvme2", "spare_low", value=1)],
            ("warning", "nvme2: the drive runs out of spare blocks"),
        ),
        (
            [nvme.UP("nvme2"), nvme_health.WEAR("nvme2", value=1.04)],
            ("warning", "nvme2: worn: 104 % of its rated endurance used"),
        ),
        (
            [nvme.UP("nvme2"), nvme_health.MEDIA_ERRORS("nvme2", value=3)],
            ("info", "nvme2: 3 media errors in its life"),
        ),
        (
            [nvme.UP("nvme2"), nvme_health.IN_FLIGHT("nvme2", value=40)],
            ("critical", "nvme2: the controller has not answered for 40 s"),
        ),
        (
            [nvme.UP("nvme2"), nvme_health.WARNING("nvme2", "backup_failed", value=1)],
            ("critical", "nvme2: the drive may lose writes when power fails"),
        ),
        ([inventory.MISSING("drives", "nvme3")], ("warning", "nvme3: missing: it was here before")),
        ([inventory.MISSING("ports", "mlx5_0/1")], ("critical", "mlx5_0/1: missing: it was here before")),
        (
            [xid.KERNEL_LOG_UP(value=0)],
            ("warning", "Kernel log: cannot be read: errors of GPUs that fell off the bus stay unseen"),
        ),
        ([rdma.UP("mlx5_1", "1", value=0)], ("info", "mlx5_1 port 1: down")),
        (
            [xid.SXID_ERRORS("20034", "true", value=1)],
            ("critical", "NVSwitch: 1 fatal SXid error 20034 since the exporter started"),
        ),
        (
            [xid.SXID_ERRORS("20034", "true", value=0)],  # a series begins with the first error
            ("critical", "NVSwitch: 1 fatal SXid error 20034 since the exporter started"),
        ),
        (
            [xid.SXID_ERRORS("22013", "true", value=3)],
            ("critical", "NVSwitch: 3 fatal SXid errors 22013 since the exporter started"),
        ),
        (
            [UP("nvme", value=0), IN_FLIGHT("nvme", value=95)],
            ("warning", "Collector nvme: has waited 95 s for the hardware"),
        ),
        ([UP("nvme", value=0), ERRORS("nvme", "denied", value=1)], ("warning", "Collector nvme: has no permission")),
        ([UP("raid", value=0), ERRORS("raid", "internal", value=1)], ("warning", "Collector raid: fails")),
        ([inventory.STATE_WRITABLE(value=0)], ("warning", "State directory: cannot be written")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) and isinstance(value[1], str) else "",
)
def test_what_samples_show_is_found_and_nothing_else(samples, expected):
    assert found(*samples) == [expected]


@pytest.mark.parametrize(
    "samples",
    [
        [*gpu_is("unknown")],  # the driver's state says it
        [*gpu_is("ok"), pcie.GENERATION(*GPU, value=1), pcie.GENERATION_MAX(*GPU, "link", value=5)],  # it rests
        [*gpu_is("ok"), nvlink.ACTIVE(*GPU, value=0), nvlink.EXPECTED(*GPU, value=0)],
        [*gpu_is("ok"), *xid_seen("13", count=5, severity="application")],
        [*gpu_is("ok"), xid.ERRORS(*GPU, "79", value=0), xid.INFO("79", "of this kind", "critical", "")],
        [driver_is("starting"), driver.GPUS_ON_BUS(value=8)],
        [UP("rdma", value=0), ERRORS("rdma", "absent", value=9)],
        [driver_is("hung"), UP("gpu", value=0), ERRORS("gpu", "unavailable", value=9)],
        [inventory.MISSING("gpus", "GPU-3")],  # its own state says it
        [xid.SXID_ERRORS("20034", "false", value=1)],
    ],
    ids=[
        "unknown",
        "idle link",
        "no links",
        "application's xid",
        "no xid",
        "starting",
        "not here",
        "hung",
        "gpu's state",
        "sxid",
    ],
)
def test_what_is_normal_or_said_elsewhere_is_no_finding(samples):
    assert [line for line in found(*samples) if not line[1].startswith("Driver: a call")] == []


def test_what_gpus_share_is_said_once_and_the_gravest_comes_first():
    samples = [rdma.UP("mlx5_1", "1", value=0), raid.UP("md1"), raid.SYNC("md1", "check")]
    for index in ("0", "1", "2", "5", "10"):
        samples += [*gpu_is("ok", index, f"GPU-{index}"), gpu_health.CLOCKS_LOCKED(index, f"GPU-{index}")]
        samples += [fabric.STATE(index, f"GPU-{index}", "in_progress")]
    findings = find(Latest(samples), Latest(()), NOW)
    assert (findings[0].severity, findings[0].subject) == ("critical", "GPUs 0-2, 5, 10")
    assert [finding.severity for finding in findings] == sorted(
        (finding.severity for finding in findings), key=("critical", "warning", "info").index
    )


def test_the_action_names_the_gpu():
    (finding,) = find(Latest(gpu_is("needs_reset")), Latest(()), NOW)
    assert finding == Finding(
        "gpu_needs_reset", "GPU 3", "needs a reset", "Drain the host, then reset the GPU: nvidia-smi --gpu-reset -i 3."
    )


POWER_CYCLE = "Drain the host and power-cycle it; if the GPU does not come back, have it exchanged."
RESET_3 = "Drain the host, then reset the GPU: nvidia-smi --gpu-reset -i 3."


@pytest.mark.parametrize(
    ("samples", "advised"),
    [
        ([*gpu_is("lost"), *xid_seen("79", action="RESTART_BM")], {POWER_CYCLE}),
        ([*gpu_is("lost"), *xid_seen("119", action="RESET_GPU")], {POWER_CYCLE}),
        ([*gpu_is("needs_reset"), *xid_seen("119", action="RESET_GPU")], {RESET_3}),
        ([*gpu_is("needs_reset"), *xid_seen("79", action="RESTART_BM")], {POWER_CYCLE}),
        ([*gpu_is("needs_reset"), *xid_seen("79", action="RESTART_BM", ago=90000)], {RESET_3, ""}),
        (
            [
                *gpu_is("needs_reset"),
                gpu_health.RECOVERY_ACTION(*GPU, "gpu_reset"),
                *xid_seen("79", action="RESTART_BM"),
            ],
            {RESET_3},
        ),
        ([*gpu_is("ok"), *xid_seen("119", action="RESET_GPU")], {RESET_3}),
        ([*gpu_is("ok"), *xid_seen("94", severity="warning", action="RESTART_APP")], {"Restart the application."}),
        (
            [*gpu_is("unreadable"), *xid_seen("119", action="RESET_GPU")],
            {"gpuhost-exporter doctor and the log say why.", RESET_3},
        ),
    ],
    ids=[
        "lost and told so",
        "lost after another error",
        "needs a reset",
        "off the bus",
        "long back",
        "asks for a reset",
        "well again",
        "program",
        "unreadable",
    ],
)
def test_the_state_of_a_gpu_and_its_xids_ask_for_the_same(samples, advised):
    assert {finding.action for finding in find(Latest(samples), Latest(()), NOW)} == advised


def test_every_word_of_the_catalogue_is_known_what_to_do_at():
    assert {entry.action for entry in Catalogue.load().entries.values()} <= advice.CATALOGUE.keys()
    assert all(advice.CATALOGUE.values())


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [(["0"], "0"), (["3", "1", "2"], "1-3"), (["0", "2", "3", "10"], "0, 2-3, 10"), (["unknown"], ""), ([], "")],
)
def test_numbers_are_shown_as_ranges(numbers, expected):
    assert ranges(numbers) == expected
