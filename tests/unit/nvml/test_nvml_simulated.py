"""The reader over the simulated library: what it asks, the simulation answers, on every simulated host."""

from __future__ import annotations

import pytest

from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.nvml import SimNvml
from gpuhost_exporter.sources.nvml.reader import Reader

HOSTS = {
    "h100x8": {"activity": 8, "links": 8, "health": 8, "fabric": 8 + 56, "mig": 0},
    "l40s": {"activity": 4, "links": 4, "health": 4},
    "vm": {"activity": 8, "links": 8, "health": 8},
    "oldkernel": {"activity": 8, "links": 8, "health": 8, "mig": 0},
}


def simulated(target, clock, folder):
    host, scenario = control.parse_target(target)
    path = str(folder / "control.json")
    control.create(path, host, scenario, clock)
    reader = Reader(SimNvml(path, clock), clock, lambda uuid, call: None)
    reader.open()
    return reader


def read(reader, clock, subject):
    clock.seconds += 1
    return reader.read(subject, frozenset())


@pytest.mark.parametrize("host", HOSTS)
def test_every_gpu_gives_every_subject_without_a_fault(host, clock, tmp_path):
    reader = simulated(host, clock, tmp_path)
    for subject, expected in HOSTS[host].items():
        batch = read(reader, clock, subject)
        assert (subject, len(batch.readings), batch.faults) == (subject, expected, ())
    reader.close()


@pytest.mark.parametrize(("host", "state"), [("h100x8", "ok"), ("vm", "ok"), ("mig", "mig"), ("l40s", "unsupported")])
def test_the_source_of_the_ratios_is_as_on_that_host(host, state, clock, tmp_path):
    reader = simulated(host, clock, tmp_path)
    read(reader, clock, "activity")
    states = {reading.uuid: reading.gpm for reading in read(reader, clock, "activity").readings}
    cut = {reading.uuid for reading in read(reader, clock, "mig").readings}
    assert {states[uuid] for uuid in cut or states} == {state}


def test_counters_never_go_back(clock, tmp_path):
    reader = simulated("h100x8", clock, tmp_path)
    parts = ("energy_joules", "nvlink_tx_bytes", "nvlink_rx_bytes", "pcie_tx_bytes", "pcie_rx_bytes")
    rows = [read(reader, clock, "activity").readings[0] for _ in range(30)]
    for part in parts:
        values = [getattr(row, part) for row in rows]
        assert values == sorted(values)
        assert values[0] < values[-1]
