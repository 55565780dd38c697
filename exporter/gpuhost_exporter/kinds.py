"""Every kind of finding, once: how grave it is, whether it takes the host out of service, the check it belongs to.

Severities are the alerts': what pages is critical, a ticket is a warning, the rest is info. Where an alert has the same
condition as a finding, the finding names it, and a test holds their severities together.

Whether it drains is another question: would a job run into it now. A GPU that has to be exchanged wakes nobody up and
still gets no job; a paused port wakes somebody up, and another host would be paused no less. What has only happened (an
XID of this morning on a GPU that is well) or what wears out does not drain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")


@dataclass(frozen=True, slots=True)
class Kind:
    severity: Severity
    drains: bool
    check: str  # of `verify`
    meaning: str
    alert: str = ""  # of alerts/rules, where one has this very condition


KINDS: dict[str, Kind] = {
    "no_library": Kind("critical", True, "driver", "NVIDIA's library is not installed"),
    "no_driver": Kind("critical", True, "driver", "the driver is not loaded"),
    "no_gpus": Kind("critical", True, "driver", "the driver sees no GPU"),
    "mismatch": Kind(
        "critical", True, "driver", "library and loaded driver differ in version", "GpuhostDriverMismatch"
    ),
    "permission": Kind("critical", False, "driver", "the device files cannot be opened", "GpuhostDriverUnreadable"),
    "released": Kind("info", False, "driver", "NVML is released by request"),
    "hung": Kind("critical", True, "driver", "a call into the driver does not return", "GpuhostDriverUnreadable"),
    "stuck": Kind(
        "critical", True, "driver", "a reader hangs in the driver and cannot be killed", "GpuhostNVMLReaderStuck"
    ),
    "crashed": Kind("critical", False, "driver", "NVIDIA's library crashed its reader", "GpuhostDriverUnreadable"),
    "error": Kind("critical", False, "driver", "the driver cannot be read", "GpuhostDriverUnreadable"),
    "driver_slow": Kind("warning", False, "driver", "no answer from the driver for a while"),
    "gpus_undriven": Kind(
        "critical", True, "driver", "GPUs on the PCI bus and no driver that takes them", "GpuhostDriverUnreadable"
    ),
    "gpus_left_out": Kind("critical", True, "GPUs", "the driver leaves GPUs of the PCI bus out"),
    "gpus_gone": Kind("critical", True, "GPUs", "GPUs are expected and none is on the PCI bus"),
    "no_gpu_expected": Kind("info", False, "GPUs", "no GPU is expected on this host"),
    "gpu_lost": Kind("critical", True, "GPUs", "a GPU fell off the bus", "GpuhostGPULost"),
    "gpu_needs_reset": Kind("critical", True, "GPUs", "a GPU needs a reset", "GpuhostGPUNeedsReset"),
    "gpu_hung": Kind("critical", True, "GPUs", "a call to a GPU does not return", "GpuhostGPUHung"),
    "gpu_missing": Kind("critical", True, "GPUs", "a GPU was here and is not listed any more", "GpuhostGPULost"),
    "gpu_unreadable": Kind("warning", False, "GPUs", "a GPU cannot be read", "GpuhostGPUUnreadable"),
    "recovery_action": Kind(
        "critical", True, "GPUs", "the driver asks for a recovery of a GPU", "GpuhostGPURecoveryAction"
    ),
    "xid_critical": Kind(
        "critical", False, "XIDs", "a critical XID of the last 24 hours; the GPU's state drains", "GpuhostXidCritical"
    ),
    "xid_warning": Kind("warning", False, "XIDs", "a lesser XID of the last 24 hours", "GpuhostXidWarning"),
    "xid_past": Kind("info", False, "XIDs", "an XID before that"),
    "remap_failed": Kind(
        "warning", True, "GPU memory", "a broken memory row could not be replaced", "GpuhostGPURowRemapFailed"
    ),
    "sram_threshold": Kind(
        "warning", True, "GPU memory", "too many uncorrected SRAM errors", "GpuhostGPUSramThreshold"
    ),
    "remap_banks": Kind(
        "warning", False, "GPU memory", "memory banks without a spare row left", "GpuhostGPUMemoryBanksExhausted"
    ),
    "remap_pending": Kind(
        "warning", False, "GPU memory", "a memory row waits for a reset to be replaced", "GpuhostGPURowRemapPending"
    ),
    "ecc_errors": Kind(
        "warning", False, "GPU memory", "uncorrected memory errors since the driver was loaded, however long ago"
    ),
    "ecc_off": Kind("warning", False, "GPU memory", "ECC is off", "GpuhostGPUEccOff"),
    "nvlink_down": Kind(
        "critical", True, "NVLink", "NVLinks that should be active are not", "GpuhostNVLinkBelowTarget"
    ),
    "pcie_fallback": Kind("critical", True, "NVLink", "a GPU reaches others over PCIe only", "GpuhostNVLinkFallback"),
    "fabric_unregistered": Kind(
        "critical", True, "NVLink fabric", "a GPU is not registered with the NVLink fabric", "GpuhostFabricNotReady"
    ),
    "fabric_unhealthy": Kind(
        "warning", True, "NVLink fabric", "the NVLink fabric reports to be unhealthy", "GpuhostFabricUnhealthy"
    ),
    "fabric_limited": Kind(
        "warning", False, "NVLink fabric", "the NVLink fabric reports a limitation", "GpuhostFabricUnhealthy"
    ),
    "fabric_manager_down": Kind(
        "critical", False, "NVLink fabric", "the fabric manager does not run", "GpuhostFabricManagerDown"
    ),
    "fabric_manager_version": Kind(
        "warning", False, "NVLink fabric", "fabric manager and driver differ in version", "GpuhostFabricManagerMismatch"
    ),
    "sxid_fatal": Kind("critical", True, "NVLink fabric", "a fatal error of an NVSwitch", "GpuhostSXidFatal"),
    "throttled": Kind(
        "warning",
        False,
        "throttling",
        "software slows a GPU down now, for its temperature",
        "GpuhostGPUThermalThrottled",
    ),
    "hardware_slows": Kind(
        "critical",
        False,
        "throttling",
        "hardware slows a GPU down now: heat, power supply",
        "GpuhostGPUHardwareSlowdown",
    ),
    "power_limit": Kind(
        "warning", False, "power limit", "a GPU's power limit is lowered", "GpuhostGPUPowerLimitLowered"
    ),
    "clocks_locked": Kind("warning", False, "clocks", "a GPU's clocks are locked", "GpuhostGPUClocksLocked"),
    "pcie_width": Kind(
        "warning", False, "PCIe", "a GPU's PCIe link has fewer lanes than it could", "GpuhostPcieWidthLow"
    ),
    "pcie_generation": Kind(
        "warning", False, "PCIe", "a GPU's PCIe link runs in a lower generation under load", "GpuhostPcieGenerationLow"
    ),
    "persistence_off": Kind("info", False, "modes", "persistence mode is off"),
    "mig": Kind("info", False, "modes", "a GPU is partitioned (MIG), as most of the host's are"),
    "mig_alone": Kind(
        "warning",
        False,
        "modes",
        "a GPU is partitioned (MIG), and most of the host's are not",
        "GpuhostGPUMigUnexpected",
    ),
    "product_unknown": Kind(
        "info", False, "modes", "a GPU's product is unknown: nothing to measure it against", "GpuhostProductUnknown"
    ),
    "several_users": Kind("info", False, "modes", "processes of several users on a GPU"),
    "device_missing": Kind("warning", False, "inventory", "a drive or array was here before", "GpuhostDriveMissing"),
    "port_missing": Kind("critical", True, "inventory", "an RDMA port was here before", "GpuhostRDMAPortMissing"),
    "port_down": Kind("critical", True, "RDMA ports", "an RDMA port that has been up is down", "GpuhostRDMAPortDown"),
    "port_unused": Kind("info", False, "RDMA ports", "an RDMA port is down and has carried nothing so far"),
    "port_loses": Kind(
        "critical", False, "RDMA ports", "the network loses an RDMA port's packets", "GpuhostRDMATimeouts"
    ),
    "port_paused": Kind("critical", False, "RDMA ports", "the network pauses an RDMA port", "GpuhostRDMAPauseHigh"),
    "port_damages": Kind("warning", False, "RDMA ports", "packets arrive damaged", "GpuhostRDMAPhysicalErrors"),
    "latency_high": Kind(
        "warning",
        False,
        "RDMA ports",
        "small messages to a host take longer than the target",
        "GpuhostCollectiveLatencyHigh",
    ),
    "latency_drift": Kind("info", False, "RDMA ports", "small messages to a host take longer than they used to"),
    "peer_silent": Kind("warning", False, "RDMA ports", "a probed host answers nothing", "GpuhostFabricProbeLoss"),
    "peer_loses": Kind("warning", False, "RDMA ports", "a probed host's answers get lost", "GpuhostFabricProbeLoss"),
    "port_mtu": Kind("info", False, "RDMA ports", "an RDMA port's packets are smaller than they could be"),
    "port_without_roce_v2": Kind("info", False, "RDMA ports", "an RDMA port has no address of RoCE version 2"),
    "gpudirect_off": Kind("info", False, "RDMA ports", "RDMA adapters cannot reach GPU memory"),
    "iommu_translates": Kind("info", False, "platform", "the IOMMU translates the GPUs' traffic"),
    "acs_enabled": Kind("info", False, "platform", "ACS sends traffic between GPUs through the CPU"),
    "array_down": Kind("critical", True, "arrays", "an array does not serve its data", "GpuhostArrayBroken"),
    "array_degraded": Kind("warning", False, "arrays", "an array runs without redundancy", "GpuhostArrayDegraded"),
    "array_sync": Kind("info", False, "arrays", "an array rebuilds or checks itself"),
    "array_slow": Kind("warning", False, "arrays", "an array is too slow though asked for more"),
    "member_slow": Kind("warning", False, "arrays", "an array waits for one of its drives", "GpuhostArrayMemberSlow"),
    "submitter_slow": Kind("info", False, "arrays", "tasks wait for buffered writes, not for the drives"),
    "drive_down": Kind("critical", True, "drives", "a drive takes no I/O", "GpuhostDriveNotAnswering"),
    "drive_read_only": Kind("critical", True, "drives", "a drive takes no more writes", "GpuhostDriveFailing"),
    "drive_backup": Kind(
        "critical", False, "drives", "a drive may lose what it holds when power fails", "GpuhostDriveFailing"
    ),
    "drive_unreliable": Kind("critical", True, "drives", "a drive calls itself unreliable", "GpuhostDriveFailing"),
    "drive_warns": Kind("warning", False, "drives", "a drive warns: spare blocks, temperature"),
    "drive_worn": Kind("warning", False, "drives", "a drive has used up its rated endurance", "GpuhostDriveWorn"),
    "drive_hot": Kind("warning", False, "drives", "a drive is hot", "GpuhostDriveHot"),
    "drive_link": Kind(
        "warning", False, "drives", "a drive's PCIe link is slower than it could be", "GpuhostDriveLinkDowntrained"
    ),
    "drive_slot": Kind("warning", False, "drives", "a drive sits in a slot with fewer lanes than it could use"),
    "drive_silent": Kind(
        "critical", False, "drives", "a drive's controller has not answered for a while", "GpuhostDriveNotAnswering"
    ),
    "media_errors": Kind("info", False, "drives", "media errors in a drive's life"),
    "collector_hung": Kind("warning", False, "exporter", "a collector waits for the hardware", "GpuhostCollectorDown"),
    "collector_denied": Kind("warning", False, "exporter", "a collector has no permission", "GpuhostCollectorDown"),
    "collector_failing": Kind("warning", False, "exporter", "a collector fails", "GpuhostCollectorDown"),
    "kernel_log_unread": Kind(
        "warning", False, "exporter", "the kernel log cannot be read", "GpuhostKernelLogUnreadable"
    ),
    "state_unwritable": Kind(
        "warning", False, "exporter", "the state directory cannot be written", "GpuhostStateNotWritable"
    ),
}


def drains_page() -> str:
    """DRAINS.md: what takes a host out of service, and what does not though it is grave."""
    lines = [
        "# What drains a host",
        "",
        "Generated by `gpuhost-exporter drains > exporter/DRAINS.md`; a test compares. `gpuhost-exporter health` says",
        "unfit while a finding that drains is there. Severities are the alerts': critical pages, warning is a ticket.",
        "An alert is named where it has the same condition, mostly for minutes; others judge growth, or a longer time.",
        "Whether a finding drains is another question: would a job run into it now. What has only happened does not.",
        "",
        "| finding | severity | drains | alert | meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{name}` | {kind.severity} | {'yes' if kind.drains else 'no'} | {kind.alert or '-'} | {kind.meaning} |"
        for name, kind in _gravest_first()
    ]
    return "\n".join(lines) + "\n"


def _gravest_first() -> Iterator[tuple[str, Kind]]:
    for severity in SEVERITIES:
        for drains in (True, False):
            yield from (
                (name, kind) for name, kind in KINDS.items() if (kind.severity, kind.drains) == (severity, drains)
            )
