"""The instances that a partitioned (MIG) GPU is made of. From NVML, and GPM per instance where the driver gives it."""

from __future__ import annotations

from collections.abc import Iterator

from gpuhost_exporter.collectors.per_gpu import NvmlCollector, gpu_gauge, gpu_info, gpu_labels, told
from gpuhost_exporter.sources.nvml.readings import MigInstance
from gpuhost_exporter.specs import Sample, Spec

_INSTANCE = ("gpu_instance", "compute_instance")

MIG_INFO = gpu_info(
    "gpuhost_mig_instance_info",
    "A MIG instance: its own UUID, by which jobs are given it, and its profile such as 1g.10gb.",
    *_INSTANCE,
    "instance_uuid",
    "profile",
)


def _gauge(name: str, text: str) -> Spec:
    return gpu_gauge(name, text, *_INSTANCE)


MEMORY_TOTAL = _gauge("gpuhost_mig_instance_memory_total_bytes", "Memory of the MIG instance.")
MEMORY_USED = _gauge("gpuhost_mig_instance_memory_used_bytes", "Memory of the MIG instance held by processes.")
UTILIZATION = _gauge(
    "gpuhost_mig_instance_utilization_ratio", "Share of time with work on the MIG instance, 0-1, from GPM."
)
SM_ACTIVE = _gauge(
    "gpuhost_mig_instance_sm_active_ratio",
    "Share of the instance's multiprocessors that were busy, averaged over time, 0-1, from GPM.",
)
TENSOR_ACTIVE = _gauge(
    "gpuhost_mig_instance_tensor_active_ratio",
    "Share of the instance's tensor cores' issue capacity in use, 0-1, from GPM.",
)
MEMORY_BANDWIDTH = _gauge(
    "gpuhost_mig_instance_memory_bandwidth_ratio",
    "Memory bandwidth of the MIG instance in use as a share of its peak, 0-1, from GPM.",
)

_TOLD = (
    (MEMORY_TOTAL, "memory_total_bytes"),
    (MEMORY_USED, "memory_used_bytes"),
    (UTILIZATION, "graphics_ratio"),
    (SM_ACTIVE, "sm_active_ratio"),
    (TENSOR_ACTIVE, "tensor_ratio"),
    (MEMORY_BANDWIDTH, "memory_bandwidth_ratio"),
)


class MigCollector(NvmlCollector):
    name = "mig"
    help = "Instances of partitioned (MIG) GPUs"
    source = "NVML: MIG devices, their memory, GPM samples per GPU instance"
    interval = 15.0
    subject = "mig"
    specs = (MIG_INFO, MEMORY_TOTAL, MEMORY_USED, UTILIZATION, SM_ACTIVE, TENSOR_ACTIVE, MEMORY_BANDWIDTH)

    def poll(self, _now: float) -> Iterator[Sample]:
        for gpu, instance in self.of_gpus(self.ask(), MigInstance):
            labels = (*gpu_labels(gpu), str(instance.gpu_instance), str(instance.compute_instance))
            yield MIG_INFO(*labels, instance.instance_uuid, instance.profile or "")
            yield from told(_TOLD, labels, instance)
