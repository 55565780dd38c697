"""The reader over recordings of what hardware answered: the committed ones, and one of each simulated kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hardware import record
from hardware.replay import Recorded
from support.fakes import FakeClock

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.nvml import SimNvml
from gpuhost_exporter.sources.nvml.reader import Reader

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.json"))
SIMULATED = ("h100x8", "l40s", "oldkernel")


@pytest.fixture(scope="module", params=[*RECORDINGS, *SIMULATED], ids=lambda source: getattr(source, "stem", source))
def document(request, tmp_path_factory):
    if isinstance(request.param, Path):
        return json.loads(request.param.read_text())
    path = str(tmp_path_factory.mktemp(request.param) / "control.json")
    control.create(path, request.param, "steady", SystemClock())
    return json.loads(record.record(SimNvml(path, SystemClock()), 2, period=0.12))


@pytest.fixture
def taken(document):
    """Two readings of each subject, and the inventory."""
    clock = FakeClock()
    reader = Reader(Recorded(document), clock, lambda gpu, call: None)
    inventory = reader.open()
    batches = {}
    for _ in range(2):
        clock.time += 20.0
        batches |= {subject: reader.read(subject, frozenset()) for subject in ("activity", *record.RARE_SUBJECTS)}
    reader.close()
    return inventory, batches


def test_the_reader_knows_the_recorded_gpu(document, taken):
    (gpu,) = taken[0].gpus
    assert vars_of(gpu) == {key: document["gpus"][-1][key] for key in vars_of(gpu)}
    assert taken[0].driver.driver_version == document["host"]["driver"]


def test_the_reader_finds_no_fault_that_the_recorded_host_had_not(document, taken):
    faults = {f"{fault.call}: {fault.kind} {fault.code}" for batch in taken[1].values() for fault in batch.faults}
    assert faults <= set(document["faults"])


def test_activity_is_what_the_gpu_answered(document, taken):
    (activity,) = taken[1]["activity"].readings
    calls = document["reader"]["calls"]
    assert activity.gpm == document["gpus"][-1]["gpm"]
    assert activity.power_watts == pytest.approx(calls["nvmlDeviceGetPowerUsage()"]["last"] / 1000)
    assert activity.energy_joules == pytest.approx(calls["nvmlDeviceGetTotalEnergyConsumption()"]["last"] / 1000)
    if activity.gpm == "ok":
        assert activity.sm_active_ratio == pytest.approx(document["reader"]["gpm"]["2"]["last"] / 100)
    else:
        assert activity.sm_active_ratio is None


def test_every_recorded_link_is_read(document, taken):
    links = [link for reading in taken[1]["links"].readings for link in reading.links]
    fields = document["reader"]["fields"]
    assert len(links) == (document["gpus"][-1]["link_count"] or 0)
    assert all(link.tx_bytes == 1024 * fields[f"138/{link.index}"]["last"] for link in links if link.active)


def vars_of(gpu):
    return {name: getattr(gpu, name) for name in gpu.__slots__ if name != "index"}
