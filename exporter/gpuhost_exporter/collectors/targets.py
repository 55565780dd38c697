"""What the host is measured against, as metrics: rules compare with these and hold no figure of their own."""

from __future__ import annotations

from collections.abc import Iterator

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.specs import Sample, gauge

PRODUCT_KNOWN = gauge(
    "gpuhost_gpu_product_known",
    "Whether the GPU's product is in this exporter's table: 1 is good. At 0 the GPU has no target series "
    "unless the site's configuration sets them.",
    "gpu",
    "uuid",
)
NVLINK_BANDWIDTH = gauge(
    "gpuhost_target_nvlink_bandwidth_bytes_per_second",
    "NVLink bandwidth that the GPU's product has, all links and both directions together; one way it is "
    "half. Absent for cards that need a bridge, unless the site's configuration sets it.",
    "gpu",
    "uuid",
)
MEMORY_BANDWIDTH = gauge(
    "gpuhost_target_memory_bandwidth_bytes_per_second",
    "Memory bandwidth of the GPU's product as specified, in bytes per second.",
    "gpu",
    "uuid",
)
POWER = gauge(
    "gpuhost_target_power_watts",
    "Power that the GPU's product is built to draw, in watts. A lower limit in force costs performance.",
    "gpu",
    "uuid",
)
TENSOR_CLOCK = gauge(
    "gpuhost_target_tensor_clock_hertz",
    "Clock of the multiprocessors at which the product's dense peak on the tensor cores is stated. Tensor activity "
    "times clock, divided by this, compares with that peak.",
    "gpu",
    "uuid",
)
STORAGE = gauge(
    "gpuhost_target_storage_bytes_per_second",
    "Sequential throughput of local storage under demand. Good is the target, below poor checkpoints and "
    "loading wait for storage, raid is what a good RAID writes.",
    "band",
)
PCIE_FALLBACK = gauge(
    "gpuhost_target_pcie_fallback_factor",
    "How many times slower collectives become when they fall back from NVLink to PCIe, by bound low or high.",
    "bound",
)
ROCE_PORT = gauge(
    "gpuhost_target_roce_port_bytes_per_second",
    "Bytes per second that one RoCE port should carry in one direction.",
)
COLLECTIVE_LATENCY = gauge(
    "gpuhost_target_collective_latency_seconds",
    "Seconds that an MPI collective of a small CPU buffer over RDMA should stay under. Not for NCCL.",
)
UTILIZATION = gauge(
    "gpuhost_target_utilization_ratio",
    "Share of time, 0 to 1, that a well-run training job keeps its GPUs busy, by platform (metal, vm) and "
    "bound (low, high).",
    "platform",
    "bound",
)
DEDICATED_UTILIZATION = gauge(
    "gpuhost_target_dedicated_utilization_ratio",
    "Average utilization, 0 to 1, above which dedicated hardware is worth its price.",
)
DEDICATED_GPU_SECONDS = gauge(
    "gpuhost_target_dedicated_gpu_seconds",
    "GPU-seconds of one training run above which dedicated hardware is worth its price.",
)
DEDICATED_REQUESTS = gauge(
    "gpuhost_target_dedicated_requests_per_second",
    "Requests a second to one inference endpoint above which dedicated hardware is worth its price.",
)
CHECKPOINT_SHARE = gauge(
    "gpuhost_target_checkpoint_share_ratio",
    "Share of training time, 0 to 1, lost by checkpointing 10 minutes of every hour: good is far below.",
)
CHECKPOINT = gauge(
    "gpuhost_target_checkpoint_bytes",
    "Size in bytes of a 70B model's checkpoint, weights alone: the measure for how long a checkpoint takes.",
)


class TargetsCollector(Collector):
    name = "targets"
    help = "What the host is measured against"
    source = "the exporter's own tables and the configuration's [target]; GPU names from NVML"
    interval = 60.0
    specs = (
        PRODUCT_KNOWN,
        NVLINK_BANDWIDTH,
        MEMORY_BANDWIDTH,
        POWER,
        TENSOR_CLOCK,
        STORAGE,
        PCIE_FALLBACK,
        ROCE_PORT,
        COLLECTIVE_LATENCY,
        UTILIZATION,
        DEDICATED_UTILIZATION,
        DEDICATED_GPU_SECONDS,
        DEDICATED_REQUESTS,
        CHECKPOINT_SHARE,
        CHECKPOINT,
    )

    def poll(self, _now: float) -> Iterator[Sample]:
        yield from self._guide()
        targets = self.host.targets
        for gpu in self.host.nvml.gpus():
            labels = (str(gpu.index), gpu.uuid)
            yield PRODUCT_KNOWN(*labels, value=float(targets.product(gpu.name) is not None))
            for spec, figure in (
                (NVLINK_BANDWIDTH, targets.nvlink_bandwidth(gpu.name)),
                (MEMORY_BANDWIDTH, targets.memory_bandwidth(gpu.name)),
                (POWER, targets.power(gpu.name)),
                (TENSOR_CLOCK, targets.tensor_clock(gpu.name)),
            ):
                if figure is not None:
                    yield spec(*labels, value=figure)

    def _guide(self) -> Iterator[Sample]:
        guide = self.host.targets.guide
        yield STORAGE("good", value=guide.storage_good_bytes_per_second)
        yield STORAGE("poor", value=guide.storage_poor_bytes_per_second)
        yield STORAGE("raid", value=guide.storage_raid_bytes_per_second)
        yield PCIE_FALLBACK("low", value=guide.pcie_fallback_factor_low)
        yield PCIE_FALLBACK("high", value=guide.pcie_fallback_factor_high)
        yield ROCE_PORT(value=guide.roce_port_bytes_per_second)
        yield COLLECTIVE_LATENCY(value=guide.collective_latency_seconds)
        yield UTILIZATION("metal", "low", value=guide.utilization_metal_low_ratio)
        yield UTILIZATION("metal", "high", value=guide.utilization_metal_high_ratio)
        yield UTILIZATION("vm", "low", value=guide.utilization_vm_low_ratio)
        yield UTILIZATION("vm", "high", value=guide.utilization_vm_high_ratio)
        yield DEDICATED_UTILIZATION(value=guide.dedicated_utilization_ratio)
        yield DEDICATED_GPU_SECONDS(value=guide.dedicated_gpu_seconds)
        yield DEDICATED_REQUESTS(value=guide.dedicated_requests_per_second)
        yield CHECKPOINT_SHARE(value=guide.checkpoint_share_ratio)
        yield CHECKPOINT(value=guide.checkpoint_bytes)
