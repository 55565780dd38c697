"""A host whose NVML answers what the test hands it, for the collectors of NVML's subjects."""

from __future__ import annotations

from dataclasses import fields

from gpuhost_exporter.config import Settings
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.nvml.client import RESTART_REASONS
from gpuhost_exporter.sources.nvml.readings import Batch, Driver, Fault, Gpu
from gpuhost_exporter.sources.processes import Processes
from gpuhost_exporter.targets import Targets
from support.fakes import FakeClock

H100 = "NVIDIA H100 80GB HBM3"
NOW = 1000.0


def reading(kind, **told):
    """A reading that tells nothing but what is given."""
    silent = {}
    for item in fields(kind):
        lists = item.type.startswith("tuple[") and not item.type.endswith("None")
        silent[item.name] = () if lists else None
    return kind(**{**silent, **told})


def gpu(index=0, name=H100, **told):
    return reading(Gpu, **{"index": index, "uuid": f"GPU-{index}", "name": name, "bdf": f"0000:1{index}:00.0", **told})


def lost(uuid, call="nvmlDeviceGetUtilizationRates"):
    return Fault(uuid, call, "lost", 15, "GPU is lost")


class FakeNvml:
    """`answers`: subject -> the readings, a Batch, or the error to raise."""

    def __init__(self, *gpus, **answers):
        self.known = gpus
        self.answers = answers
        self.states = {gpu.uuid: "ok" for gpu in gpus}
        self.driver_state = "ok"
        self.until = None
        self.broken = {}
        self.versions = Driver("580.95.05", "13.580.95.05", "13.0")
        self.asked = []
        self.arrived = []
        self.forgotten = set()

    def gpus(self):
        return self.known

    def gpu_states(self):
        return self.states

    def state(self):
        return self.driver_state

    def released_until(self):
        return self.until

    def driver(self):
        return self.versions

    def unopened(self):
        return self.broken

    def restarts(self):
        return {reason: int(reason == "hung") for reason in RESTART_REASONS}

    def stuck(self):
        return 0

    def in_flight_seconds(self, now):
        return now - NOW

    def forget(self, uuid):
        self.forgotten.add(uuid)

    def recheck(self, arrived=""):
        self.arrived.append(arrived)

    def read(self, subject):
        self.asked.append(subject)
        answer = self.answers[subject]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Batch) else Batch(NOW, tuple(answer), ())


def host_of(nvml, root=None, targets=None):
    return Host(
        clock=FakeClock(),
        root=Root.below(str(root)) if root else Root.below("/nonexistent"),
        settings=Settings(),
        targets=Targets.load(targets or {}),
        nvml=nvml,
        kernel_log=None,
        processes=Processes(FakeClock()),
        state=None,
    )


def poll(collector, now=NOW):
    """{name without prefix: {labels: value}}; no series comes twice, and none that the collector does not declare."""
    found = {}
    for spec, labels, value in collector.poll(now):
        assert spec in collector.specs
        series = found.setdefault(spec.name.removeprefix("gpuhost_"), {})
        assert labels not in series, f"{spec.name}{labels} twice"
        series[labels] = float(value)
    return found


def of(found, name, *labels, index=0):
    """The value of one GPU's series, or None where there is no such series."""
    return found.get(name, {}).get((str(index), f"GPU-{index}", *labels))


def uuids(found):
    return {labels[1] for series in found.values() for labels in series}
