"""MIG: instances over gaps, one GPM pair a GPU instance, buffers given back when instances go."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from gpuhost_exporter.sources.nvml.reader import Reader

GIB = 1 << 30


@pytest.fixture
def mig(nv, clock):
    """GPU-0 cut into a 1g.10gb at slot 0 and two compute instances of one 3g.40gb at slots 2 and 3."""
    parent = nv.gpus[0]
    parent.answers["nvmlDeviceGetMigMode"] = [1, 1]
    parts = {0: (7, 0, "1g.10gb", 10), 2: (2, 0, "1c.3g.40gb", 40), 3: (2, 1, "1c.3g.40gb", 40)}
    nv.instances = {}
    for slot, (number, compute, profile, size) in parts.items():
        instance = type(parent)(f"MIG-{slot}")
        instance.answers |= {
            "nvmlDeviceGetGpuInstanceId": number,
            "nvmlDeviceGetComputeInstanceId": compute,
            "nvmlDeviceGetName": f"NVIDIA H100 80GB HBM3 MIG {profile}",
            "nvmlDeviceGetMemoryInfo": lambda version, size=size: SimpleNamespace(
                total=size * GIB, used=GIB, free=(size - 1) * GIB, reserved=0
            ),
        }
        nv.instances[slot] = instance
    parent.answers["nvmlDeviceGetMigDeviceHandleByIndex"] = lambda slot: nv.instances.get(slot) or pynvml.NVMLError(6)
    reader = Reader(nv, clock, lambda uuid, call: None)
    reader.open()
    return reader


def instances(reader, clock, seconds=1.0):
    clock.seconds += seconds
    batch = reader.read("mig", frozenset())
    return {reading.instance_uuid: reading for reading in batch.readings}, batch.faults


def test_instances_are_found_over_gaps(mig, clock):
    found, faults = instances(mig, clock)
    assert [(uuid, part.gpu_instance, part.compute_instance, part.profile) for uuid, part in found.items()] == [
        ("MIG-0", 7, 0, "1g.10gb"),
        ("MIG-2", 2, 0, "1c.3g.40gb"),
        ("MIG-3", 2, 1, "1c.3g.40gb"),
    ]
    assert {part.uuid for part in found.values()} == {"GPU-0"}
    assert (found["MIG-0"].memory_total_bytes, found["MIG-0"].memory_used_bytes) == (10 * GIB, GIB)
    assert (found["MIG-0"].sm_active_ratio, faults) == (None, ())


def test_each_gpu_instance_is_sampled_once_however_many_compute_instances_share_it(nv, mig, clock):
    instances(mig, clock)
    nv.log.clear()
    found, _ = instances(mig, clock)
    assert {part.sm_active_ratio for part in found.values()} == {0.8}
    assert [arguments[1] for name, arguments in nv.log if name == "nvmlGpmMigSampleGet"] == [7, 2]


def test_instances_without_gpm_still_tell_their_memory(nv, mig, clock):
    nv.gpus[0].answers["nvmlGpmMigSampleGet"] = pynvml.NVMLError(4)
    instances(mig, clock)
    found, _ = instances(mig, clock)
    assert {(part.sm_active_ratio, part.memory_used_bytes) for part in found.values()} == {(None, GIB)}


def test_an_instance_made_anew_is_not_compared_with_its_predecessor(nv, mig, clock):
    instances(mig, clock)
    nv.instances[0].uuid = "MIG-new"
    found, _ = instances(mig, clock)
    assert (found["MIG-new"].sm_active_ratio, found["MIG-2"].sm_active_ratio) == (None, 0.8)
    assert sorted(freed for freed, _ in nv.samples.values()) == [0, 0, 0, 0, 1, 1]


def test_when_mig_is_switched_off_nothing_is_left(nv, mig, clock):
    instances(mig, clock)
    nv.gpus[0].answers["nvmlDeviceGetMigMode"] = [0, 0]
    assert instances(mig, clock) == ({}, ())
    assert {freed for freed, _ in nv.samples.values()} == {1}
    mig.close()
    assert {freed for freed, _ in nv.samples.values()} == {1}


def test_an_instance_that_goes_while_being_read_costs_no_other(nv, mig, clock):
    nv.instances[2].answers["nvmlDeviceGetGpuInstanceId"] = pynvml.NVMLError(999)
    found, faults = instances(mig, clock)
    assert (set(found), [fault.uuid for fault in faults]) == ({"MIG-0", "MIG-3"}, ["GPU-0"])
