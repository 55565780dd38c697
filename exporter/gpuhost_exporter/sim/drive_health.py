"""What a simulated drive's health log says at a moment: the page that its controller would hand out."""

from __future__ import annotations

import struct

from gpuhost_exporter.sim import tree_block
from gpuhost_exporter.sim.hosts import Drive
from gpuhost_exporter.sim.timeline import Timeline

_KELVIN = 273
_RATED_DAYS = 5 * 365  # the drive's size written each day for so long
_WORN_BEFORE = 0.03
_SPARE_THRESHOLD = 10
_CYCLES_BEFORE = 31
_UNSAFE_BEFORE = 7
_HOURS_BEFORE = 9127
_DATA_UNIT = 512_000
_QUEUED_PER_MEDIA_ERROR = 124.0  # request-seconds that a drive which retries its reads lets wait
_SECTOR = 512


def celsius(timeline: Timeline, drive: Drive, seconds: float) -> int:
    return round(36 + 14 * _busy(timeline, drive, seconds))


def page(timeline: Timeline, drive: Drive, seconds: float) -> bytes:
    """Bytes and wear grow with what is written, media errors with the time that reads wait at a slow member."""
    counters = tree_block.drive(timeline, drive, seconds)
    endurance = drive.sectors * _SECTOR * _RATED_DAYS
    written = counters.written_bytes + _WORN_BEFORE * endurance
    errors = media_errors(timeline, drive, seconds)
    spare = max(0, 100 - errors // 4)
    back = timeline.active("array_recovering", seconds) is not None and drive.name == timeline.host.failing_drive
    warm = _KELVIN + celsius(timeline, drive, seconds)
    whole = bytearray(512)
    struct.pack_into(
        "<BHBBB", whole, 0, int(spare < _SPARE_THRESHOLD), warm, spare, _SPARE_THRESHOLD,
        min(255, int(100 * written / endurance)),
    )  # fmt: skip
    for offset, count in (
        (32, counters.read_bytes / _DATA_UNIT),
        (48, written / _DATA_UNIT),
        (112, _CYCLES_BEFORE + back),
        (128, _HOURS_BEFORE + seconds / 3600),
        (144, _UNSAFE_BEFORE + back),
        (160, errors),
    ):
        whole[offset : offset + 16] = int(count).to_bytes(16, "little")
    struct.pack_into("<2H", whole, 200, warm, warm + 6)
    return bytes(whole)


def media_errors(timeline: Timeline, drive: Drive, seconds: float) -> int:
    if not tree_block.is_slow_member(timeline.host, drive):
        return 0
    return int(timeline.host_levels(seconds)[1].slow_queue / _QUEUED_PER_MEDIA_ERROR)


def _busy(timeline: Timeline, drive: Drive, seconds: float) -> float:
    """The share of the last ten seconds that a drive was busy."""
    since = max(0.0, seconds - 10)
    if since == seconds:
        return 0.0
    then, now = (tree_block.drive(timeline, drive, at).busy_seconds for at in (since, seconds))
    return (now - then) / (seconds - since)
