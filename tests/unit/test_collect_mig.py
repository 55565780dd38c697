"""The mig collector: each instance of a partitioned GPU has its own series."""

from __future__ import annotations

from support.gpus import NOW, FakeNvml, gpu, host_of, lost, poll, reading, uuids

from gpuhost_exporter.collectors.mig import MigCollector
from gpuhost_exporter.sources.nvml.readings import Batch, MigInstance


def instance(gpu_instance, index=0, **told):
    ids = {"uuid": f"GPU-{index}", "at": NOW, "gpu_instance": gpu_instance, "compute_instance": 0}
    return reading(MigInstance, **ids, instance_uuid=f"MIG-{gpu_instance}", **told)


def test_instances_have_their_own_series_and_only_what_they_tell():
    busy = instance(
        1,
        profile="3g.40gb",
        memory_total_bytes=42e9,
        memory_used_bytes=40e9,
        graphics_ratio=0.9,
        sm_active_ratio=0.8,
        tensor_ratio=0.4,
        memory_bandwidth_ratio=0.5,
    )
    one, two = ("0", "GPU-0", "1", "0"), ("0", "GPU-0", "2", "0")
    assert poll(MigCollector(host_of(FakeNvml(gpu(), mig=[busy, instance(2)])))) == {
        "mig_instance_info": {(*one, "MIG-1", "3g.40gb"): 1, (*two, "MIG-2", ""): 1},
        "mig_instance_memory_total_bytes": {one: 42e9},
        "mig_instance_memory_used_bytes": {one: 40e9},
        "mig_instance_utilization_ratio": {one: 0.9},
        "mig_instance_sm_active_ratio": {one: 0.8},
        "mig_instance_tensor_active_ratio": {one: 0.4},
        "mig_instance_memory_bandwidth_ratio": {one: 0.5},
    }


def test_without_partitions_there_are_no_series():
    assert poll(MigCollector(host_of(FakeNvml(gpu(), mig=[])))) == {}


def test_a_lost_gpus_instances_are_absent():
    batch = Batch(NOW, (instance(1, index=1),), (lost("GPU-0"),))
    collector = MigCollector(host_of(FakeNvml(gpu(0), gpu(1), mig=batch)))
    assert uuids(poll(collector)) == {"GPU-1"}
    assert collector.errors == {"lost": 1}
