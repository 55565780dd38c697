"""Is this bare metal, and what that costs: the verdict with its evidence, and how devices are placed and set up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.collectors.per_gpu import gpu_info
from gpuhost_exporter.specs import Sample, Spec, gauge, info

VIRTUALIZED = gauge(
    "gpuhost_virtualized",
    "Whether the machine is virtual (1) or bare metal (0, hypervisor none; a hypervisor's own host, such as Xen's "
    "dom0, is metal and names it). Good is 0 where metal is paid for; gpuhost_virtualization_evidence says why.",
    "hypervisor",
)
EVIDENCE = gauge(
    "gpuhost_virtualization_evidence",
    "What each source says for the machine being virtual: 1 speaks for it, 0 against it. Sources that do not tell "
    "are absent; cpuid weighs most, dmi alone proves nothing in a cloud.",
    "source",
    "finding",
)
CONTAINER = gauge(
    "gpuhost_container",
    "Whether the exporter itself runs in a container (1), and of which kind. Not whether the machine is virtual.",
    "runtime",
)
EXPECTED_UTILIZATION = gauge(
    "gpuhost_expected_utilization_ratio",
    "Share of time, 0 to 1, that a well-run training job keeps GPUs busy on this platform, by bound (low, high): the "
    "target for metal or for virtual machines, whichever this is.",
    "bound",
)
IOMMU = gauge(
    "gpuhost_iommu_mode",
    "How the IOMMU treats the GPUs' DMA, 1 for the current mode of off, passthrough and translated. On metal good is "
    "off or passthrough; translated costs bandwidth between GPUs, NICs and drives.",
    "mode",
)
SWITCH_PORTS = gauge(
    "gpuhost_pci_switch_ports",
    "Downstream ports of PCIe switches above GPUs and RDMA adapters, by whether ACS redirects peer-to-peer traffic: "
    "enabled, disabled, unreadable. On metal good is none enabled, which would send it through the CPU; virtual "
    "machines need it.",
    "acs",
)
NUMA_NODE = gauge(
    "gpuhost_numa_node",
    "NUMA node that the device is attached to: gpu0 (by index), mlx5_0, nvme0. Absent where the firmware does not say.",
    "device",
)
GOVERNOR = gauge(
    "gpuhost_cpu_governor_policies",
    "CPU frequency policies by their governor. Good is performance alone; absent where the kernel does not scale.",
    "governor",
)
IDLE_LATENCY = gauge(
    "gpuhost_cpu_idle_exit_latency_seconds",
    "Seconds that a CPU takes to wake from each idle state (C-state) that it may use, as its driver says. Tens of "
    "microseconds and more add to the latency of every small message.",
    "state",
)
AFFINITY = gpu_info(
    "gpuhost_gpu_rdma_affinity_info",
    "The RDMA adapter nearest to the GPU and what is between them: switch (one PCIe switch), switches, host_bridge, "
    "node (the same CPU) or system (another CPU). Good is switch.",
    "device",
    "path",
)
GPUDIRECT = gauge(
    "gpuhost_gpudirect_rdma_available",
    "Whether RDMA adapters can reach GPU memory by this path: peer_memory (module nvidia_peermem) or dma_buf (open "
    "kernel module, Linux 5.12). One at 1 is good; with neither all traffic takes a copy through host memory.",
    "path",
)
FABRIC_MANAGER = gauge(
    "gpuhost_fabric_manager_up",
    "Whether NVIDIA's fabric manager runs: 1 is good. Only on hosts with NVSwitches, where CUDA does not start "
    "without it; absent where other processes cannot be seen.",
)
FABRIC_MANAGER_INFO = info(
    "gpuhost_fabric_manager_info",
    "Version of the fabric manager, as it last wrote to its log.",
    "version",
)
FABRIC_MANAGER_MATCHES = gauge(
    "gpuhost_fabric_manager_matches_driver",
    "Whether the fabric manager has the driver's version: 1 is good. At 0 it does not start, or will not after the "
    "next reboot.",
)


class PlatformCollector(Collector):
    name: ClassVar[str] = "platform"
    help: ClassVar[str] = "Bare metal or virtual, and how the devices are placed and set up"
    source: ClassVar[str] = "/proc/cpuinfo, /sys/class/dmi/id, /sys/bus/pci, /sys/kernel/iommu_groups, NVML"
    privilege: ClassVar[str] = "CAP_SYS_ADMIN for ACS, whose registers the kernel shows to nobody else"
    interval: ClassVar[float] = 60.0
    specs: ClassVar[tuple[Spec, ...]] = (
        VIRTUALIZED,
        EVIDENCE,
        CONTAINER,
        EXPECTED_UTILIZATION,
        IOMMU,
        SWITCH_PORTS,
        NUMA_NODE,
        GOVERNOR,
        IDLE_LATENCY,
        AFFINITY,
        GPUDIRECT,
        FABRIC_MANAGER,
        FABRIC_MANAGER_INFO,
        FABRIC_MANAGER_MATCHES,
    )

    def poll(self, now: float) -> Iterator[Sample]:
        yield from ()
