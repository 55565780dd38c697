"""Registration of each GPU with the NVSwitch fabric, and the health that the fabric reports. From NVML."""

from __future__ import annotations

from collections.abc import Iterator

from gpuhost_exporter.collectors.per_gpu import NvmlCollector, gpu_gauge, gpu_info, gpu_labels, one_of
from gpuhost_exporter.sources.nvml.readings import Fabric
from gpuhost_exporter.specs import Sample

STATE = gpu_gauge(
    "gpuhost_gpu_fabric_state",
    "Registration of the GPU with the NVSwitch fabric, 1 for the current state of not_started, in_progress and "
    "completed. Good is completed; before that CUDA does not start on such a host.",
    "state",
)
STATUS = gpu_gauge(
    "gpuhost_gpu_fabric_status_code",
    "NVML's code for how the registration ended, told once it is completed. Good is 0.",
)
FINDING = gpu_gauge(
    "gpuhost_gpu_fabric_finding",
    "Whether the fabric reports this finding about the GPU, such as degraded bandwidth or an incorrect configuration. "
    "Good is 0.",
    "finding",
)
HEALTH = gpu_gauge(
    "gpuhost_gpu_fabric_health",
    "Summary of the fabric's health for the GPU, 1 for the current one of healthy, unhealthy and limited. Good is "
    "healthy.",
    "summary",
)
FABRIC_INFO = gpu_info(
    "gpuhost_gpu_fabric_info",
    "Which fabric the GPU belongs to: GPUs with the same cluster and clique reach each other over NVLink.",
    "cluster_uuid",
    "clique",
)

STATES = ("not_started", "in_progress", "completed")
SUMMARIES = ("healthy", "unhealthy", "limited")


class FabricCollector(NvmlCollector):
    name = "fabric"
    help = "NVSwitch fabric registration and health of each GPU"
    source = "NVML: GPU fabric information and P2P status of each pair of GPUs"
    interval = 15.0
    subject = "fabric"
    specs = (STATE, STATUS, FINDING, HEALTH, FABRIC_INFO)

    def poll(self, _now: float) -> Iterator[Sample]:
        for gpu, fabric in self.of_gpus(self.ask(), Fabric):
            if fabric.state is None or fabric.state == "not_supported":
                continue
            labels = gpu_labels(gpu)
            yield from one_of(STATE, labels, STATES, fabric.state)
            if fabric.status_code is not None:
                yield STATUS(*labels, value=fabric.status_code)
            for finding, present in fabric.health:
                yield FINDING(*labels, finding, value=present)
            if fabric.summary is not None:
                yield from one_of(HEALTH, labels, SUMMARIES, fabric.summary)
            if fabric.cluster_uuid or fabric.clique:
                yield FABRIC_INFO(*labels, fabric.cluster_uuid or "", fabric.clique or "")
