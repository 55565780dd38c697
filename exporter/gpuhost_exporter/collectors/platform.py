"""Is this bare metal, and what that costs: the verdict with its evidence, and how devices are placed and set up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.collectors.per_gpu import gpu_info, gpu_labels, one_of
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources import contention, gpudirect, pci, placement, rdma, virtualization
from gpuhost_exporter.sources.fabric_manager import FabricManager
from gpuhost_exporter.sources.virtualization import HINT, PROOF, Evidence
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
    privilege: ClassVar[str] = (
        "CAP_SYS_ADMIN for ACS, whose registers the kernel shows to nobody else; CAP_DAC_READ_SEARCH for SMBIOS"
    )
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

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._fabric_manager = FabricManager(host.root)
        self._nearness = placement.Nearness(host.root)

    def poll(self, now: float) -> Iterator[Sample]:
        yield from self._verdict()
        yield from self._placement(now)
        yield from self._processors()
        yield from self._fabric()

    def _verdict(self) -> Iterator[Sample]:
        root = self.host.root
        evidence = (*virtualization.look(root), *self._second_opinions())
        for each in evidence:
            yield EVIDENCE(each.source, each.finding, value=float(each.virtual))
        verdict = virtualization.judge(evidence)
        runtime = virtualization.container(root)
        yield CONTAINER(runtime or "none", value=float(runtime is not None))
        if verdict is None:
            return
        yield VIRTUALIZED(verdict.hypervisor, value=float(verdict.virtual))
        guide = self.host.targets.guide
        metal = (guide.utilization_metal_low_ratio, guide.utilization_metal_high_ratio)
        virtual = (guide.utilization_vm_low_ratio, guide.utilization_vm_high_ratio)
        for bound, share in zip(("low", "high"), virtual if verdict.virtual else metal, strict=True):
            yield EXPECTED_UTILIZATION(bound, value=share)

    def _second_opinions(self) -> Iterator[Evidence]:
        modes = {gpu.virtualization_mode for gpu in self.host.nvml.gpus() if gpu.virtualization_mode}
        for mode in sorted(modes & {"passthrough", "vgpu"}):
            yield Evidence("nvml", mode, virtual=True, weight=PROOF)
        if modes and not modes & {"passthrough", "vgpu"}:
            yield Evidence("nvml", ", ".join(sorted(modes)), virtual=False, weight=HINT)
        smbios = self.host.registers.told().virtual_machine
        if smbios is not None:
            yield virtualization.of_smbios(smbios)
        with self.guard("stat"):
            if contention.steal_seconds(self.host.root):  # that nothing was stolen so far proves nothing
                yield Evidence("steal", "CPU time was stolen", virtual=True, weight=PROOF)

    def _placement(self, now: float) -> Iterator[Sample]:
        root = self.host.root
        gpus = self.host.nvml.gpus()
        mode = placement.iommu_mode(root, [gpu.bdf for gpu in gpus])
        if mode is not None:
            yield from one_of(IOMMU, (), placement.IOMMU_MODES, mode)
        ports = self.host.registers.told().switch_ports
        if ports:
            for state, redirects in (("enabled", True), ("disabled", False), ("unreadable", None)):
                yield SWITCH_PORTS(state, value=sum(port.redirects is redirects for port in ports))
        for device, node in placement.numa_nodes(root, {f"gpu{gpu.index}": gpu.bdf for gpu in gpus}).items():
            yield NUMA_NODE(device, value=node)
        adapters = {
            port.device: port.address
            for port in self.host.board.last("ports", tuple, now) or ()
            if isinstance(port, rdma.Port) and port.address
        }
        for gpu in gpus:
            path, nearest = self._nearness.nearest(gpu.bdf, adapters.values())
            for device, address in adapters.items():
                if path and address in nearest:
                    yield AFFINITY(*gpu_labels(gpu), device, path)
        if adapters:
            for path, available in gpudirect.paths(root).items():
                yield GPUDIRECT(path, value=float(available))

    def _processors(self) -> Iterator[Sample]:
        for governor, policies in sorted(placement.governors(self.host.root).items()):
            yield GOVERNOR(governor, value=policies)
        for state, seconds in placement.idle_states(self.host.root).items():
            yield IDLE_LATENCY(state, value=seconds)

    def _fabric(self) -> Iterator[Sample]:
        if not pci.count_nvswitches(self.host.root):
            return
        runs, version = self._fabric_manager.runs(), self._fabric_manager.version()
        driver = self.host.nvml.driver()
        if runs is not None:
            yield FABRIC_MANAGER(value=float(runs))
        if version is not None:
            yield FABRIC_MANAGER_INFO(version)
            if driver is not None:
                yield FABRIC_MANAGER_MATCHES(value=float(version == driver.driver_version))
