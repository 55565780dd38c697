"""What runs in the NVML child: one subject of all GPUs at a time, each GPU by itself.

Reading a GPU never costs its siblings anything but time; a call that does not return costs the process, which the
parent replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Denied, Malformed, SourceError
from gpuhost_exporter.sources.nvml import inventory
from gpuhost_exporter.sources.nvml.activity import Activities
from gpuhost_exporter.sources.nvml.calls import Calls, Device, DriverDown, Mark
from gpuhost_exporter.sources.nvml.events import Events
from gpuhost_exporter.sources.nvml.fabric import FabricReader
from gpuhost_exporter.sources.nvml.health import Healths
from gpuhost_exporter.sources.nvml.links import LinkReader
from gpuhost_exporter.sources.nvml.mig import MigReader
from gpuhost_exporter.sources.nvml.probe import LOST, Probe, fault_of
from gpuhost_exporter.sources.nvml.readings import Batch, Driver, Fault, Gpu, Inventory, Xid

DOWN_SECONDS = 15.0  # how long a GPU that is lost is left alone


class _Down(NamedTuple):
    """A GPU that is lost, what found it so, and until when it is left alone."""

    fault: Fault
    subject: str
    until: float


class Reader:
    """`nv` is the binding or a simulated one. Opened once, closed once; a driver that comes back wants a new
    Reader. All methods but wait_events belong to one thread."""

    def __init__(self, nv: Any, clock: Clock, mark: Mark) -> None:
        self._clock = clock
        self._calls = calls = Calls(nv, clock, mark)
        self._devices: dict[str, Device] = {}
        self._skipped: frozenset[str] = frozenset()
        self._down: dict[str, _Down] = {}
        self._activity = Activities(calls, clock)
        self._links = LinkReader(clock, self._activity.idle)
        self._fabric = FabricReader(calls, clock)
        self._mig = MigReader(calls, clock)
        # Calls of its own: what is remembered there is not shared between threads.
        self._events = Events(Calls(nv, clock, mark), clock)
        self._subjects: dict[str, Callable[[Probe], Iterable[object]]] = {
            "activity": self._activity.read,
            "links": self._links.read,
            "health": Healths(clock).read,
            "fabric": self._fabric.read,
            "mig": self._mig.read,
        }

    def open(self, skip: frozenset[str] = frozenset()) -> Inventory:
        """Load the library and take every GPU's handle. Raises DriverDown.

        `skip` names GPUs, by UUID or "index:N", that are not to be touched beyond learning their UUID.
        """
        try:
            self._calls.call("", "nvmlInit")
            driver = inventory.driver(self._calls)
            count = self._calls.call("", "nvmlDeviceGetCount")
        except Denied as error:
            raise DriverDown("permission", str(error)) from error
        except SourceError as error:
            raise DriverDown("error", str(error)) from error
        return self._take(driver, count, skip)

    def read(self, subject: str, skip: frozenset[str]) -> Batch:
        """One subject of every GPU but those in `skip`. Raises DriverDown."""
        read = self._subjects[subject]
        self._skipped = skip
        at = self._clock.now()
        readings: list[object] = []
        faults: list[Fault] = []
        for device in self._awake(at):
            probe = Probe(self._calls, device)
            try:
                with _contained():
                    readings.extend(read(probe))
            except LOST as error:
                call = str(error).partition(":")[0]
                self._down[device.uuid] = _Down(fault_of(device.uuid, call, error), subject, at + DOWN_SECONDS)
            except SourceError as error:
                faults.append(fault_of(device.uuid, subject, error))
            else:
                self._answered(device.uuid, subject)
            faults.extend(probe.faults)
        if subject == "fabric":
            readings.extend(self._fabric.peers(self._awake(at), self._links.active()))
        faults.extend(down.fault for uuid, down in self._down.items() if uuid not in skip)
        return Batch(at, tuple(readings), tuple(faults))

    def wait_events(self, timeout_seconds: float) -> tuple[Xid, ...]:
        """XIDs, from a thread of its own; blocks for at most so many seconds and raises nothing."""
        return self._events.wait(self._awake(self._clock.now()), timeout_seconds)

    def close(self) -> None:
        """Give everything back, so that the driver can be unloaded. A driver that is down has nothing to take."""
        try:
            self._events.close()
            self._activity.close()
            self._mig.close()
            self._calls.call("", "nvmlShutdown")
        except (SourceError, DriverDown):
            pass
        self._devices = {}

    def _take(self, driver: Driver, count: int, skip: frozenset[str]) -> Inventory:
        devices: dict[str, Device] = {}
        gpus: list[Gpu] = []
        faults: list[Fault] = []
        for index in range(count):
            place = f"index:{index}"
            if place in skip:
                continue
            try:
                with _contained():
                    device = inventory.device(self._calls, index)
                    if device.uuid in devices:
                        raise Malformed(f"nvmlDeviceGetUUID: {device.uuid} twice")
                    if device.uuid in skip:
                        faults.append(Fault(place, "open", "hung", 0, f"{device.uuid} is left out"))
                    else:
                        probe = Probe(self._calls, device)
                        gpus.append(inventory.gpu(probe))
                        faults.extend(probe.faults)
                    devices[device.uuid] = device
            except SourceError as error:
                faults.append(fault_of(place, "open", error))
        self._devices = devices
        self._skipped = skip
        return Inventory(driver, tuple(gpus), tuple(faults))

    def _answered(self, uuid: str, subject: str) -> None:
        """A lost GPU still answers some calls: it is back when the subject that lost it reads again."""
        down = self._down.get(uuid)
        if down and down.subject == subject:
            del self._down[uuid]

    def _awake(self, now: float) -> list[Device]:
        """The GPUs to ask: neither left out by the parent nor lost a moment ago."""
        return [
            device
            for uuid, device in self._devices.items()
            if uuid not in self._skipped and not ((down := self._down.get(uuid)) and now < down.until)
        ]


@contextmanager
def _contained() -> Iterator[None]:
    """Whatever goes wrong while one GPU is read, as a SourceError; DriverDown passes, it concerns them all."""
    try:
        yield
    except (SourceError, DriverDown):
        raise
    except Exception as error:
        # A GPU that is going bad fills the binding's structures with anything: where that trips code nobody foresaw,
        # it must not end the process that reads the other GPUs.
        raise Malformed(f"{type(error).__name__}: {error}") from error
