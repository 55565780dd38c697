"""The fabric collector: one state at a time, findings as they are judged, nothing where there is no fabric."""

from __future__ import annotations

import pytest
from support.gpus import NOW, FakeNvml, gpu, host_of, lost, poll, reading, uuids

from gpuhost_exporter.collectors.fabric import FabricCollector
from gpuhost_exporter.sources.nvml.readings import Batch, Fabric, Peer


def fabric(index=0, **told):
    return reading(Fabric, uuid=f"GPU-{index}", at=NOW, **told)


def collector_of(*answer):
    return FabricCollector(host_of(FakeNvml(gpu(0), gpu(1), fabric=answer)))


def test_a_registered_gpu():
    told = fabric(
        state="completed",
        status_code=0,
        health=(("degraded_bandwidth", False), ("route_unhealthy", True)),
        summary="unhealthy",
        clique="3",
        cluster_uuid="c0ffee",
    )
    gpu0 = ("0", "GPU-0")
    assert poll(collector_of(told)) == {
        "gpu_fabric_state": {(*gpu0, "not_started"): 0, (*gpu0, "in_progress"): 0, (*gpu0, "completed"): 1},
        "gpu_fabric_status_code": {gpu0: 0},
        "gpu_fabric_finding": {(*gpu0, "degraded_bandwidth"): 0, (*gpu0, "route_unhealthy"): 1},
        "gpu_fabric_health": {(*gpu0, "healthy"): 0, (*gpu0, "unhealthy"): 1, (*gpu0, "limited"): 0},
        "gpu_fabric_info": {(*gpu0, "c0ffee", "3"): 1},
    }


def test_a_gpu_that_still_registers_has_a_state_and_nothing_else():
    assert set(poll(collector_of(fabric(state="in_progress")))) == {"gpu_fabric_state"}


@pytest.mark.parametrize("state", ["not_supported", None])
def test_without_a_fabric_there_are_no_series(state):
    assert poll(collector_of(fabric(state=state))) == {}


def test_a_lost_gpu_takes_only_its_own_series_along():
    batch = Batch(NOW, (fabric(1, state="completed"),), (lost("GPU-0"),))
    collector = FabricCollector(host_of(FakeNvml(gpu(0), gpu(1), fabric=batch)))
    assert uuids(poll(collector)) == {"GPU-1"}


def test_fabric_and_peers_are_posted_for_the_nvlink_collector():
    told = (fabric(state="completed"), Peer("GPU-0", "GPU-1", NOW, "ok", "ok", "ok"))
    collector = collector_of(*told)
    poll(collector)
    assert collector.host.board.last("fabric", tuple, collector.host.clock.now()) == told
