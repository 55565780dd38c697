"""What the drives say of themselves: wear, spare, media errors, warnings, throttling by heat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.config import Settings
from gpuhost_exporter.errors import Absent, Denied, SourceError, Unavailable, Unsupported
from gpuhost_exporter.host import Host
from gpuhost_exporter.sources import nvme
from gpuhost_exporter.sources.nvme_health import WARNINGS, Health, Told
from gpuhost_exporter.specs import Sample, Spec, counter, gauge

READABLE = gauge(
    "gpuhost_nvme_health_readable",
    "Whether the drive's health log could be read when it was last asked. 1 is good. At 0 wear, spare, media errors "
    "and warnings are not known: no permission (doctor says what grants it), or the controller does not answer. "
    "Absent for a drive that keeps no such log.",
    "device",
)
READ_AT = gauge(
    "gpuhost_nvme_health_timestamp_seconds",
    "When the drive's health log was last read, in seconds since the epoch. It is read once a minute.",
    "device",
)
IN_FLIGHT = gauge(
    "gpuhost_nvme_health_in_flight_seconds",
    "Seconds that the drive has left the request for its health log unanswered, 0 when none waits. Good is 0; the "
    "kernel resets a controller after 60.",
    "device",
)
WARNING = gauge(
    "gpuhost_nvme_critical_warning",
    "Critical warnings that the drive raises now, 1 for each raised: spare_low, temperature, reliability_degraded, "
    "read_only, backup_failed, persistent_memory_unreliable. Good is 0.",
    "device",
    "warning",
)
WEAR = gauge(
    "gpuhost_nvme_wear_ratio",
    "Share of the drive's rated endurance that is used up. At 1 it is worn by its rating and may still work; drives "
    "count up to 2.55.",
    "device",
)
SPARE = gauge(
    "gpuhost_nvme_spare_ratio",
    "Share of the drive's spare blocks that is left. Good is above gpuhost_nvme_spare_threshold_ratio.",
    "device",
)
SPARE_THRESHOLD = gauge(
    "gpuhost_nvme_spare_threshold_ratio", "Share of spare blocks below which the drive warns.", "device"
)
MEDIA_ERRORS = counter(
    "gpuhost_nvme_media_errors_total",
    "Unrecovered errors of the medium or of data integrity in the drive's life. Good is no increase.",
    "device",
)
UNSAFE_SHUTDOWNS = counter(
    "gpuhost_nvme_unsafe_shutdowns_total",
    "Losses of power without notice in the drive's life. They rise on healthy hosts too.",
    "device",
)
POWER_CYCLES = counter("gpuhost_nvme_power_cycles_total", "Power cycles in the drive's life.", "device")
POWER_ON = counter(
    "gpuhost_nvme_power_on_seconds_total", "Seconds in operation in the drive's life, counted in hours.", "device"
)
READ_BYTES = counter(
    "gpuhost_nvme_lifetime_read_bytes_total",
    "Bytes read by hosts in the drive's life, in steps of 512,000.",
    "device",
)
WRITTEN_BYTES = counter(
    "gpuhost_nvme_lifetime_written_bytes_total",
    "Bytes written by hosts in the drive's life, in steps of 512,000. What wears it.",
    "device",
)
THROTTLINGS = counter(
    "gpuhost_nvme_thermal_transitions_total",
    "Times that the drive began to slow itself down for its temperature, by level: light costs little speed, heavy "
    "much. Good is no increase. 0 also for drives without this management.",
    "device",
    "level",
)
THROTTLED = counter(
    "gpuhost_nvme_thermal_seconds_total",
    "Seconds that the drive slowed itself down for its temperature, by level: light costs little speed, heavy much. "
    "Good is no increase. 0 also for drives without this management.",
    "device",
    "level",
)
HOT = counter(
    "gpuhost_nvme_temperature_exceeded_seconds_total",
    "Seconds above the drive's own warning and critical temperature, by threshold, counted in minutes. Good is no "
    "increase.",
    "device",
    "threshold",
)

EVERY_SECONDS = 60.0
_LEVELS = ("light", "heavy")
_SILENT_SECONDS = 5.0
_READER = "health log"
_SHUT = (Absent, Denied)


def reading_interval(settings: Settings) -> float:
    """Seconds between two requests to a drive: each is work for its controller, so never more often than once a
    minute.
    """
    chosen = settings.collectors.get(NvmeHealthCollector.name)
    return max(EVERY_SECONDS, (chosen.interval if chosen else None) or 0.0)


def fresh_health(host: Host, name: str, now: float) -> Health | None:
    """What the drive's log said, unless it was read too long ago."""
    told = host.drive_health.told(name)
    if told.read_at is None or now - told.read_at > 3 * reading_interval(host.settings):
        return None
    return told.health


class NvmeHealthCollector(Collector):
    name: ClassVar[str] = "nvme_health"
    help: ClassVar[str] = "Wear, spare, media errors, warnings and throttling of NVMe drives"
    source: ClassVar[str] = "the drives' health log (SMART), by an admin command to /dev/nvmeN"
    privilege: ClassVar[str] = "CAP_SYS_ADMIN (AmbientCapabilities=CAP_SYS_ADMIN) and read access to /dev/nvmeN"
    interval: ClassVar[float] = EVERY_SECONDS
    subsystems: ClassVar[frozenset[str]] = frozenset({"nvme"})
    specs: ClassVar[tuple[Spec, ...]] = (
        READABLE,
        READ_AT,
        IN_FLIGHT,
        WARNING,
        WEAR,
        SPARE,
        SPARE_THRESHOLD,
        MEDIA_ERRORS,
        UNSAFE_SHUTDOWNS,
        POWER_CYCLES,
        POWER_ON,
        READ_BYTES,
        WRITTEN_BYTES,
        THROTTLINGS,
        THROTTLED,
        HOT,
    )

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._answered: dict[str, float] = {}

    def poll(self, now: float) -> Iterator[Sample]:
        """Tell what the privileged reader found; it reads at its own pace and hurries this when it has news."""
        state, message = self.host.drive_health.state()
        if state not in ("ok", "starting"):
            kinds: dict[str, type[SourceError]] = {kind.kind: kind for kind in (Absent, Denied)}
            self.fault(_READER, kinds.get(state, Unavailable)(message))
        drives = nvme.controllers(self.host.root)
        self.host.drive_health.keep(drives)
        shut = False
        for name in drives:
            told = self.host.drive_health.told(name)
            self._note(name, told)
            shut = shut or isinstance(told.failure, _SHUT)
            yield from self._samples(name, told, now)
        if state == "ok" and not shut:
            self.recovered(_READER)

    def _note(self, name: str, told: Told) -> None:
        """Count each failure once. A permission or device node that all drives lack is one fault, not one a drive."""
        if told.answered_at is None or self._answered.get(name) == told.answered_at:
            return
        self._answered[name] = told.answered_at
        if told.failure is None:
            self.recovered(name)
        else:
            self.fault(_READER if isinstance(told.failure, _SHUT) else name, told.failure)

    def _samples(self, name: str, told: Told, now: float) -> Iterator[Sample]:
        waited = 0.0 if told.asked_at is None else max(0.0, now - told.asked_at)
        if told.answered_at is not None or told.asked_at is not None:
            if not isinstance(told.failure, Unsupported):
                yield READABLE(name, value=float(told.failure is None and waited < _SILENT_SECONDS))
            yield IN_FLIGHT(name, value=waited)
        health = fresh_health(self.host, name, now)
        if health and told.read_at is not None:
            yield READ_AT(name, value=self.host.clock.wall() - (self.host.clock.now() - told.read_at))
            yield from _health(name, health)


def _health(name: str, health: Health) -> Iterator[Sample]:
    for warning in WARNINGS:
        yield WARNING(name, warning, value=float(warning in health.warnings))
    yield WEAR(name, value=health.wear_ratio)
    for spec, told in (
        (SPARE, health.spare_ratio),
        (SPARE_THRESHOLD, health.spare_threshold_ratio),
        (READ_BYTES, health.read_bytes),
        (WRITTEN_BYTES, health.written_bytes),
    ):
        if told is not None:
            yield spec(name, value=told)
    yield MEDIA_ERRORS(name, value=health.media_errors)
    yield UNSAFE_SHUTDOWNS(name, value=health.unsafe_shutdowns)
    yield POWER_CYCLES(name, value=health.power_cycles)
    yield POWER_ON(name, value=health.power_on_seconds)
    for level, count, seconds in zip(_LEVELS, health.throttlings, health.throttled_seconds, strict=True):
        yield THROTTLINGS(name, level, value=count)
        yield THROTTLED(name, level, value=seconds)
    yield HOT(name, "warning", value=health.warm_seconds)
    yield HOT(name, "critical", value=health.hot_seconds)
