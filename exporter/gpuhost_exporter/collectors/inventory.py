"""What belongs to this host: learned once seen, kept in the state directory, reported missing when it is gone.

A GPU is known by its UUID: an index that changes is no missing GPU, a replaced GPU leaves the old one missing until
`gpuhost-exporter forget UUID`. An array is known by its UUID, too, for its name may change from boot to boot; it is
called by the name that it had, and one made anew under that name takes its place. Configured counts or names take the
place of what was learned. Nothing is judged while its subject cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpuhost_exporter.board import Listed
from gpuhost_exporter.collector import Collector
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources.nvml.readings import Links
from gpuhost_exporter.sources.state import Data, State
from gpuhost_exporter.specs import Sample, gauge

STATE_NAME = "inventory"
KINDS = ("gpus", "links", "drives", "arrays", "ports")

GPUS_EXPECTED = gauge(
    "gpuhost_gpus_expected",
    "GPUs that this host should have: as configured, else the most ever seen at once. Good is as many with "
    "gpuhost_gpu_up 1.",
)
EXPECTED = gauge(
    "gpuhost_inventory_expected",
    "Devices of a kind (gpus, links, drives, arrays, ports) that this host should have: as configured, else the most "
    "ever seen at once. Links are NVLinks once seen active.",
    "kind",
)
PRESENT = gauge(
    "gpuhost_inventory_present",
    "Devices of a kind that are there now, where names are configured of those. Good is gpuhost_inventory_expected; "
    "absent while they cannot be read.",
    "kind",
)
MISSING = gauge(
    "gpuhost_inventory_missing",
    "1 for each device that was there, or is configured, and is not there now. Good is no such series. What is gone "
    "for good is dropped with gpuhost-exporter forget.",
    "kind",
    "device",
)
READABLE = gauge(
    "gpuhost_inventory_readable",
    "Whether devices of the kind can be read now, so that a missing one would show. At 0 nothing is judged.",
    "kind",
)
STATE_WRITABLE = gauge(
    "gpuhost_state_writable",
    "Whether the state directory takes files. At 0 what is learned, and which events were counted, is lost at the "
    "next restart.",
)

_PRESENT_STATES = frozenset({"ok", "needs_reset", "hung", "unreadable"})

Device = Mapping[str, str | int]
Devices = Mapping[str, Device]


@dataclass(frozen=True, slots=True)
class Learned:
    """Devices of a kind ever seen, by the name that `forget` takes, and the most seen at once."""

    devices: Devices
    most: int


@dataclass(frozen=True, slots=True)
class Found:
    """`seen` by identity. `doubtful` is what was learned of devices that are listed, `unread` many, and not read."""

    seen: Devices
    doubtful: Devices
    unread: int


def learned(data: Mapping[str, Any], kind: str) -> Learned:
    """What the state says of a kind; what it says in any other form counts as not learned."""
    stored = data.get(kind)
    if not isinstance(stored, dict) or not isinstance(stored.get("devices"), dict):
        return Learned({}, 0)
    devices = {name: device for name, device in stored["devices"].items() if isinstance(device, dict)}
    most = stored.get("most")
    return Learned(devices, min(most, len(devices)) if isinstance(most, int) and most > 0 else 0)


def learn(data: Data, kind: str, seen: Devices) -> Data:
    """The state with what is seen now added."""
    known = learned(data, kind)
    kept = _not_replaced(known.devices, seen) if kind == "arrays" else known.devices
    return data | {kind: {"devices": {**kept, **seen}, "most": max(known.most, len(seen))}}


def _not_replaced(known: Devices, seen: Devices) -> Devices:
    """Without the arrays whose name one has that was never seen before, and without those that only a name is known of
    (no UUID was told: by an older kernel, or to an older exporter) which an array with a UUID has now.
    """
    new = {device["device"] for identity, device in seen.items() if identity not in known and "device" in device}
    named = {device.get("device") for device in seen.values()}
    return {
        identity: device
        for identity, device in known.items()
        if identity in seen or not (device.get("device") in new or identity == device.get("device") in named)
    }


def forget(state: State, device: str) -> bool:
    """Drop a device, and a GPU's links with it. False when the state has no such device.

    Raises ConfigError when the state directory cannot be written.
    """
    data = state.load(STATE_NAME)
    if _without(data, device) == data:
        return False
    state.update(STATE_NAME, lambda current: _without(current, device))
    state.flush()
    if not state.writable:
        raise ConfigError(f"cannot forget {device}: {state.reason}")
    return True


def _without(data: Data, device: str) -> Data:
    for kind in KINDS:
        known = learned(data, kind)
        left = {
            name: details
            for name, details in known.devices.items()
            if name != device
            and not (kind == "links" and name.startswith(f"{device}/"))
            and not (kind == "arrays" and details.get("device") == device)
        }
        if len(left) < len(known.devices):
            data = data | {kind: {"devices": left, "most": known.most}}
    return data


class InventoryCollector(Collector):
    name = "inventory"
    help = "Devices that should be there and are not"
    source = "what the other collectors read; the state directory"
    interval = 15.0
    specs = (GPUS_EXPECTED, EXPECTED, PRESENT, MISSING, READABLE, STATE_WRITABLE)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._gpus_learned: frozenset[str] = frozenset()  # since the exporter started

    def poll(self, now: float) -> Iterator[Sample]:
        state = self.host.state
        state.retry()
        links = self._links(now)
        data = state.load(STATE_NAME)
        self._forget_gpus(data)
        found = {
            "gpus": _found(self._gpus()),
            "links": None if links is None else _found_links(links, learned(data, "links").devices),
            **{kind: self._listed(kind, learned(data, kind), now) for kind in ("drives", "arrays", "ports")},
        }
        # The links of a GPU that does not answer are told by the GPU.
        answered = {reading.uuid for reading in links or ()}
        for kind, there in found.items():
            if there and there.seen and learn(data, kind, there.seen) != data:
                data = state.update(STATE_NAME, partial(learn, kind=kind, seen=there.seen))
            samples = [
                sample
                for sample in self._judge(kind, there, learned(data, kind))
                if kind != "links" or sample.spec is not MISSING or sample.labels[1].partition("/")[0] in answered
            ]
            yield from samples
            if kind == "arrays":
                missing = tuple(sample.labels[1] for sample in samples if sample.spec is MISSING)
                self.post("missing arrays", missing)
        yield STATE_WRITABLE(value=float(state.writable))

    def _forget_gpus(self, data: Data) -> None:
        """What was learned and is no longer in the state was forgotten by command: a missing GPU is told no more.
        A state without any GPUs is a new one, and says nothing."""
        known = frozenset(learned(data, "gpus").devices)
        if "gpus" in data:
            for uuid in self._gpus_learned - known:
                self.host.nvml.forget(uuid)
            known |= self._gpus_learned
        self._gpus_learned = known

    def _judge(self, kind: str, found: Found | None, known: Learned) -> Iterator[Sample]:
        configured = self.host.settings.inventory.get(kind)
        expected = _expected(configured, known)
        yield READABLE(kind, value=float(found is not None))
        if found is not None or configured is not None or known.devices:
            yield EXPECTED(kind, value=expected)
            if kind == "gpus":
                yield GPUS_EXPECTED(value=expected)
        if found is None:
            return
        there = {**found.doubtful, **found.seen}
        count = len(found.seen) + found.unread
        if isinstance(configured, tuple):
            missing = {name for name in configured if not any(_is_called(name, *device) for device in there.items())}
            count = len(configured) - len(missing)
        elif isinstance(configured, int) and count >= configured:
            missing = set()  # what was learned and is gone was taken out
        else:
            missing = known.devices.keys() - there.keys()
        yield PRESENT(kind, value=count)
        for name in _called(missing, known.devices, there) if kind == "arrays" else sorted(missing):
            yield MISSING(kind, name, value=1)

    def _gpus(self) -> Devices | None:
        nvml = self.host.nvml
        if nvml.state() == "no_gpus":
            return {}
        if nvml.state() != "ok":
            return None
        states = nvml.gpu_states()
        return {
            gpu.uuid: {"index": gpu.index, "bdf": gpu.bdf, "name": gpu.name}
            for gpu in nvml.gpus()
            if states.get(gpu.uuid) in _PRESENT_STATES
        }

    def _links(self, now: float) -> list[Links] | None:
        posted = self.host.board.last("links", tuple, now)
        if posted is None or self.host.nvml.state() != "ok":
            return None
        return [reading for reading in posted if isinstance(reading, Links)]

    def _listed(self, kind: str, known: Learned, now: float) -> Found | None:
        """What the kernel lists is there, also while it cannot be read: then whatever had its name may be it."""
        posted = self.host.board.last(f"listed {kind}", tuple, now)
        if posted is None:
            return None
        listed = [device for device in posted if isinstance(device, Listed)]
        seen: Devices = {device.identity: {"device": device.device} for device in listed if device.identity}
        unread = {device.device for device in listed if device.identity is None}
        doubtful = {name: device for name, device in known.devices.items() if device.get("device") in unread}
        if unread - {device["device"] for device in doubtful.values()} and known.devices.keys() - seen.keys():
            return None  # a new name that cannot be read may be any that is not seen
        return Found(seen, doubtful, len(unread))


def _found(seen: Devices | None) -> Found | None:
    return None if seen is None else Found(seen, {}, 0)


def _called(missing: Iterable[str], known: Devices, there: Devices) -> list[str]:
    """Missing arrays by the name that each had, or by its UUID where that is another's now."""
    taken = {device.get("device") for device in there.values()}
    called = []
    for identity in sorted(missing):
        name = str(known.get(identity, {}).get("device", identity))
        called.append(identity if name in taken else name)
        taken.add(name)
    return sorted(called)


def _expected(configured: int | tuple[str, ...] | None, known: Learned) -> int:
    if configured is None:
        return known.most
    return configured if isinstance(configured, int) else len(configured)


def _found_links(readings: list[Links], known: Devices) -> Found:
    """A link that was not read may be up or down: one that was ever up is taken to be there."""
    states = {f"{links.uuid}/{link.index}": link.active for links in readings for link in links.links}
    unread = {name: known[name] for name, active in states.items() if active is None and name in known}
    return Found({name: {} for name, active in states.items() if active}, unread, len(unread))


def _is_called(name: str, key: str, device: Device) -> bool:
    """Whether a configured name means this device: a GPU also by its PCI address, others by their kernel name."""
    return name in (key, device.get("device"), device.get("bdf"))
