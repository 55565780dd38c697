"""The host that the invariants are held against: this one's GPUs, or simulated ones, which prove the tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hardware.record import RARE_SUBJECTS, HurriedClock
from support.daemon import Daemon

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.nvml import SimNvml
from gpuhost_exporter.sim.tree import Tree
from gpuhost_exporter.sources.nvml.calls import DriverDown, load
from gpuhost_exporter.sources.nvml.reader import Reader

ROUNDS = 3
BETWEEN_SECONDS = 0.3  # GPM wants 0.1


@dataclass(frozen=True, slots=True)
class Machine:
    simulated: bool
    nv: object
    sysfs: Path
    serve: tuple[str, ...]  # arguments of `serve`

    def reader(self, clock):
        return Reader(self.nv, clock, lambda gpu, call: None)


@dataclass(frozen=True, slots=True)
class Taken:
    """Some rounds of every subject, each GPU read in full each time."""

    inventory: object
    rounds: tuple[dict, ...]  # subject -> Batch

    def readings(self, subject):
        """By GPU: its readings, one a round."""
        found = {}
        for batches in self.rounds:
            for reading in batches[subject].readings:
                found.setdefault(reading.uuid, []).append(reading)
        return found

    def faults(self):
        batches = (batch for round_ in self.rounds for batch in round_.values())
        return [*self.inventory.faults, *(fault for batch in batches for fault in batch.faults)]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where none can be read, in one line of the report (-rs)."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    reason = unreadable() if wanting else None
    if reason:
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason=f"no GPU can be read here: {reason}"))


def unreadable():
    """Why no GPU can be read here; None where one can."""
    reader = real().reader(SystemClock())
    try:
        gpus = reader.open().gpus
    except DriverDown as down:
        return f"{down.state}: {down}"
    reader.close()
    return None if gpus else "no_gpus: the driver finds none that answers"


def real():
    return Machine(False, load(), Path("/sys"), ())


def simulated(folder, host):
    path, clock = str(folder / "control.json"), SystemClock()
    control.create(path, host, "steady", clock)
    Tree(path, str(folder / "root"), clock).write()
    serve = (f"--simulate={host}", f"--simulate.control={path}")
    return Machine(True, SimNvml(path, clock), folder / "root" / "sys", serve)


@pytest.fixture(scope="module", params=[pytest.param("real", marks=pytest.mark.gpu), "h100x8", "l40s", "mig"])
def machine(request, tmp_path_factory):
    return real() if request.param == "real" else simulated(tmp_path_factory.mktemp("host"), request.param)


@pytest.fixture(scope="module")
def taken(machine):
    clock = HurriedClock()
    reader = machine.reader(clock)
    inventory = reader.open()
    rounds = []
    for number in range(ROUNDS):
        time.sleep(BETWEEN_SECONDS if number else 0.0)
        clock.hurry()
        rounds.append({subject: reader.read(subject, frozenset()) for subject in ("activity", *RARE_SUBJECTS)})
    reader.close()
    return Taken(inventory, tuple(rounds))


@pytest.fixture(scope="module", params=[pytest.param("real", marks=pytest.mark.gpu), "h100x8"])
def daemon(request, tmp_path_factory):
    """The whole exporter, and how many GPUs it should find."""
    folder = tmp_path_factory.mktemp("daemon")
    machine = real() if request.param == "real" else simulated(folder, request.param)
    reader = machine.reader(SystemClock())
    gpus = reader.open().gpus
    reader.close()
    with Daemon(folder, *machine.serve) as running:
        yield running, {str(gpu.index) for gpu in gpus}, machine.simulated
