"""NVLink, link by link: state, rate, what is at the other end, bytes and errors.

    nvmlDeviceGetNvLinkState(handle, link) -> 1     0 inactive; NOT_SUPPORTED or INVALID_ARGUMENT past the last link

Error counters differ by generation. Up to Hopper they are fields 161 to 163 (or, on older drivers, the per-link
getter) and the getter's ECC count; the older per-link and total fields 32 to 59 answer success and zero on Hopper
and are never asked. On Blackwell only link recoveries (field 215) mean the same as before; the rest is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.sources.nvml import fields, quantities
from gpuhost_exporter.sources.nvml.probe import LOST, Probe
from gpuhost_exporter.sources.nvml.readings import Fault, Link, Links

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
    """NVLink slots, None without NVLink."""
    told = fields.read(probe, ((fields.LINK_COUNT, 0),)).whole(quantities.LINKS, fields.LINK_COUNT)
    if told is None:
        told = 0
        while told < _MOST_LINKS and probe.value("nvmlDeviceGetNvLinkState", told) is not None:
            told += 1
    return told or None


class LinkReader:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[str, int | None] = {}
        self._static: dict[str, tuple[dict[int, Link], tuple[Fault, ...]]] = {}
        self._active: dict[str, tuple[int, ...]] = {}

    def read(self, probe: Probe) -> Iterator[Links]:
        uuid = probe.device.uuid
        try:
            if uuid not in self._counts:
                self._counts[uuid] = count(probe)
            slots = self._counts[uuid]
            if slots:
                yield Links(uuid, self._clock.now(), tuple(self._links(probe, slots)))
        except LOST:
            self._forget(uuid)
            raise

    def active(self) -> dict[str, tuple[int, ...]]:
        """The links that were active when last read, by GPU: who caches something about paths compares this."""
        return dict(self._active)

    def _forget(self, uuid: str) -> None:
        self._counts.pop(uuid, None)
        self._static.pop(uuid, None)
        self._active.pop(uuid, None)

    def _links(self, probe: Probe, slots: int) -> Iterator[Link]:
        uuid = probe.device.uuid
        states = {link: probe.whole(quantities.SWITCH, "nvmlDeviceGetNvLinkState", link) for link in range(slots)}
        active = tuple(link for link, state in states.items() if state)
        if self._active.get(uuid, active) != active:
            # A link that came back may have trained to another rate, and what it refused while down it now tells.
            self._static.pop(uuid, None)
            probe.calls.forget(probe.device)
        self._active[uuid] = active
        if uuid not in self._static:
            asking = Probe(probe.calls, probe.device)
            links = {link: _static(asking, link, active) for link in states}
            self._static[uuid] = links, asking.faults
        static, faults = self._static[uuid]
        probe.still(faults)
        told = fields.read(probe, [field for link in active for field in _counters(probe, link)])
        for link, state in states.items():
            if state is None:
                continue
            known = static[link]
            tx, rx = told.link_bytes(link) if state else (None, None)
            errors = tuple(_errors(probe, told, link)) if state else ()
            yield Link(
                link,
                bool(state),
                known.version,
                known.rate_bytes_per_second,
                known.remote,
                known.remote_bdf,
                tx,
                rx,
                errors,
            )


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


def _errors(probe: Probe, told: fields.Told, link: int) -> Iterator[tuple[str, int]]:
    if probe.blackwell():
        recoveries = told.whole(quantities.COUNT, fields.LINK5_RECOVERIES, link)
        if recoveries is not None:
            yield "recovery", recoveries
        return
    for field, counter, word in _ERRORS:
        value = told.whole(quantities.COUNT, field, link)
        if value is None:
            value = probe.whole(quantities.COUNT, "nvmlDeviceGetNvLinkErrorCounter", link, counter)
        if value is not None:
            yield word, value
    ecc = probe.whole(quantities.COUNT, "nvmlDeviceGetNvLinkErrorCounter", link, _ECC_COUNTER)
    if ecc is not None:
        yield "ecc", ecc
