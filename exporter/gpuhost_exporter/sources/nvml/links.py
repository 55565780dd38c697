"""NVLink, link by link: state, rate, what is at the other end, bytes and errors.

    nvmlDeviceGetNvLinkState(handle, link) -> 1     0 inactive; NOT_SUPPORTED or INVALID_ARGUMENT past the last link

Error counters differ by generation. Up to Hopper they are fields 161 to 163 (or, on older drivers, the per-link
getter) and the getter's ECC count; the older per-link and total fields 32 to 59 answer success and zero on Hopper
and are never asked. On Blackwell only link recoveries (field 215) mean the same as before; the rest is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import Unsupported
from gpuhost_exporter.sources.nvml import fields, quantities
from gpuhost_exporter.sources.nvml.probe import LOST, Probe
from gpuhost_exporter.sources.nvml.readings import Fault, Link, Links

SELDOM_SECONDS = 14.0  # every third reading at 5 s, whose ticks are not exact

_STATE = "nvmlDeviceGetNvLinkState"
# An enumeration: 4 is NVLink 3.0, not 4.
_VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0"}
_REMOTES = {0: "gpu", 1: "cpu", 2: "switch"}
_ERRORS = (
    (fields.LINK_REPLAYS, 0, "replay"),
    (fields.LINK_RECOVERIES, 1, "recovery"),
    (fields.LINK_CRC_ERRORS, 2, "crc"),
)
_ECC_COUNTER = 4
_MOST_LINKS = 72

_BUS_ID = re.compile(r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])")


def sysfs_bdf(bus_id: object) -> str | None:
    """NVML's 00000000:65:00.0 as sysfs spells it, 0000:65:00.0; None for anything else and for FFFFFFFF:FF:FF.0,
    which NVSwitches answer."""
    match = _BUS_ID.fullmatch(bus_id) if isinstance(bus_id, str) else None
    if match is None or match[2].lower() == match[3].lower() == "ff":
        return None
    return f"{int(match[1], 16):04x}:{match[2]}:{match[3]}.{match[4]}".lower()


def count(probe: Probe) -> int | None:
    """NVLink slots, 0 without NVLink, None while the GPU does not say: a call that failed is no answer."""
    told = fields.read(probe, ((fields.LINK_COUNT, 0),)).whole(quantities.LINKS, fields.LINK_COUNT)
    if told is not None:
        return told
    for link in range(_MOST_LINKS):
        if probe.value(_STATE, link) is None:
            return link if _ends(probe, link) else None
    return _MOST_LINKS


def _ends(probe: Probe, link: int) -> bool:
    """Whether there is no such link, which is another answer than none."""
    return isinstance(probe.refusal(_STATE, (link,)), Unsupported)


class _Getters(NamedTuple):
    """What the error counters said that each cost a call, by link and counter, and what failed."""

    at: float
    counts: Mapping[tuple[int, int], int]
    faults: tuple[Fault, ...]


class _Gpu:
    """What is kept of one GPU from reading to reading."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.states: dict[int, int | None] = {}  # as last told, None for a link that never told
        self.static: tuple[dict[int, Link], tuple[Fault, ...]] | None = None
        self.getters: _Getters | None = None
        self.last: tuple[Links, tuple[Fault, ...]] | None = None


class LinkReader:
    """`idle`: whether nothing uses the GPU of this UUID. Its links are then read every 15 s only, in between the
    last reading is given again: an exporter must not keep it warm."""

    def __init__(self, clock: Clock, idle: Callable[[str], bool]) -> None:
        self._clock = clock
        self._idle = idle
        self._gpus: dict[str, _Gpu] = {}

    def read(self, probe: Probe) -> Iterator[Links]:
        uuid = probe.device.uuid
        now = self._clock.now()
        try:
            if uuid not in self._gpus:
                slots = count(probe)
                if not slots:
                    if slots == 0:
                        yield Links(uuid, now, ())
                    return
                self._gpus[uuid] = _Gpu(slots)
            gpu = self._gpus[uuid]
            if gpu.last is None or now - gpu.last[0].at >= SELDOM_SECONDS or not self._idle(uuid):
                links = Links(uuid, now, tuple(self._links(probe, gpu, now)))
                unread = any(link.active is None for link in links.links)
                gpu.last = None if unread else (links, probe.faults)
            else:
                links, faults = gpu.last
                probe.still(faults)
            yield links
        except LOST:
            self._gpus.pop(uuid, None)
            raise

    def active(self) -> dict[str, tuple[int, ...]]:
        """The links that were active when last read, by GPU: who caches something about paths compares this."""
        return {uuid: _active(gpu.states) for uuid, gpu in dict(self._gpus).items()}

    def _links(self, probe: Probe, gpu: _Gpu, now: float) -> Iterator[Link]:
        told = {link: probe.whole(quantities.SWITCH, _STATE, link) for link in range(gpu.slots)}
        states = {link: gpu.states.get(link) if state is None else state for link, state in told.items()}
        active = _active(states)
        if gpu.states and states != gpu.states:
            # A link that came back may have trained to another rate, and what it refused while down it now tells.
            gpu.static = gpu.getters = None
            probe.calls.forget(probe.device)
        gpu.states = states
        if gpu.static is None:
            asking = Probe(probe.calls, probe.device)
            links = {link: _static(asking, link, active) for link in states}
            gpu.static = links, asking.faults
        static, faults = gpu.static
        probe.still(faults)
        counted = fields.read(probe, [field for link in active for field in _counters(probe, link)])
        if gpu.getters is None or now - gpu.getters.at >= SELDOM_SECONDS:
            gpu.getters = _getters(Probe(probe.calls, probe.device), counted, active, now)
        probe.still(gpu.getters.faults)
        for link, state in told.items():
            if state is None and _ends(probe, link):
                continue
            known = static[link]
            tx, rx = counted.link_bytes(link) if link in active else (None, None)
            yield Link(
                link,
                None if state is None else bool(state),
                known.version,
                known.rate_bytes_per_second,
                known.remote,
                known.remote_bdf,
                tx,
                rx,
                tuple(_errors(probe, counted, gpu.getters.counts, link)) if link in active else (),
            )


def _active(states: Mapping[int, int | None]) -> tuple[int, ...]:
    return tuple(link for link, state in states.items() if state)


def _static(probe: Probe, link: int, active: tuple[int, ...]) -> Link:
    version = probe.whole(quantities.ENUM, "nvmlDeviceGetNvLinkVersion", link)
    remote = probe.whole(quantities.ENUM, "nvmlDeviceGetNvLinkRemoteDeviceType", link)
    name = "nvmlDeviceGetNvLinkRemotePciInfo"
    pci = probe.value(name, link)
    return Link(
        index=link,
        active=link in active,
        version=_VERSIONS.get(version or 0),
        rate_bytes_per_second=_rate(probe, link) if link in active else None,
        remote=None if remote is None else _REMOTES.get(remote),
        remote_bdf=sysfs_bdf(probe.written(pci, "busId", name)),
        tx_bytes=None,
        rx_bytes=None,
        errors=(),
    )


def _rate(probe: Probe, link: int) -> float | None:
    """The link's signalling rate, else the one that all links share."""
    told = fields.read(probe, ((fields.LINK_SPEED, link), (fields.LINK_COMMON_SPEED, 0)))
    own = told.quantity(quantities.MEGABYTES_PER_SECOND, fields.LINK_SPEED, link)
    return told.quantity(quantities.MEGABYTES_PER_SECOND, fields.LINK_COMMON_SPEED) if own is None else own


def _counters(probe: Probe, link: int) -> Iterator[fields.Field]:
    yield from fields.link_byte_fields(probe, link)
    if probe.blackwell():
        yield fields.LINK5_RECOVERIES, link
    else:
        yield from ((field, link) for field, _, _ in _ERRORS)


def _getters(probe: Probe, told: fields.Told, active: Iterable[int], now: float) -> _Getters:
    """Ask the counters of these links that no field tells, a call each."""
    counts: dict[tuple[int, int], int] = {}
    if not probe.blackwell():
        for link in active:
            wanted = [number for field, number, _ in _ERRORS if told.whole(quantities.COUNT, field, link) is None]
            for number in (*wanted, _ECC_COUNTER):
                value = probe.whole(quantities.COUNT, "nvmlDeviceGetNvLinkErrorCounter", link, number)
                if value is not None:
                    counts[link, number] = value
    return _Getters(now, counts, probe.faults)


def _errors(
    probe: Probe, told: fields.Told, getters: Mapping[tuple[int, int], int], link: int
) -> Iterator[tuple[str, int]]:
    if probe.blackwell():
        recoveries = told.whole(quantities.COUNT, fields.LINK5_RECOVERIES, link)
        if recoveries is not None:
            yield "recovery", recoveries
        return
    for field, counter, word in _ERRORS:
        value = told.whole(quantities.COUNT, field, link)
        if value is None:
            value = getters.get((link, counter))
        if value is not None:
            yield word, value
    if (link, _ECC_COUNTER) in getters:
        yield "ecc", getters[link, _ECC_COUNTER]
