"""Small stand-ins that more than one test uses."""

from __future__ import annotations

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.specs import gauge

VALUE = gauge("gpuhost_test_value", "A value.", "device")


class FakeClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time


class Scripted(Collector):
    """A collector whose poll is the test's."""

    name, help, source, interval, specs = "scripted", "A test.", "nothing", 1.0, (VALUE,)

    def __init__(self, script):
        super().__init__(host=None)
        self.script = script

    def poll(self, now):
        yield from self.script()
