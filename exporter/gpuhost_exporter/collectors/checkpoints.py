"""What the ledger tells of checkpoints, by mount and mode.

Which of these there are shows when the first one has ended, for it may change until then. It moves counters and
histograms once they have stood at 0 for AT_ZERO, as do others that end meanwhile; the last one's figures are told at
once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gpuhost_exporter.collector import AT_ZERO
from gpuhost_exporter.ledger.histogram import Histogram
from gpuhost_exporter.specs import Sample, counter, gauge, histogram

if TYPE_CHECKING:
    from gpuhost_exporter.ledger.checkpoint import Checkpoint

_MOST_MOUNTS = 8
_OTHER_MOUNTS = "other"
_BEFORE = ("unknown", "sync")  # what is there at 0 before any
_MOST_JOBS = 64  # whose last one is remembered
_DURATIONS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SIZES = (1e9, 4e9, 16e9, 64e9, 140e9, 256e9, 512e9, 1e12, 2e12)

CHECKPOINT_SECONDS = histogram(
    "gpuhost_checkpoint_duration_seconds",
    "Seconds that checkpoints took, by mount and mode. sync: the GPUs stand while the job writes. async: they stand "
    "for a copy, then it writes beside training, which counts here. remote: no file is written; copies out of the "
    "GPUs tell, and that the host sends over its network (whoever does), where its interfaces can be read. Good for "
    "140 GB is under 7.",
    "mount",
    "mode",
)
CHECKPOINT_BYTES = histogram(
    "gpuhost_checkpoint_size_bytes",
    "Bytes of checkpoints, by mount and mode: what the job's processes wrote, copies of it not counted again, of "
    "remote ones what left the GPUs. Under 256 MB, or 20 MB/s, nothing is taken for a checkpoint. Core files are left "
    "out; whatever else a job writes while its GPUs stand, such as a large cache, looks the same.",
    "mount",
    "mode",
)
CHECKPOINT_LOST = counter(
    "gpuhost_checkpoint_gpu_seconds_lost_total",
    "GPU-seconds for which GPUs stood for checkpoints that have ended, all GPUs of the job together. One that was "
    "under way when the job was first seen counts here only: its length and bytes nobody saw. Of one slower than "
    "50 MB/s what passes until 256 MB are written is not in it.",
    "mount",
    "mode",
)
LAST_SECONDS = gauge(
    "gpuhost_checkpoint_last_duration_seconds", "Seconds that the last checkpoint took.", "mount", "mode"
)
LAST_STALL = gauge(
    "gpuhost_checkpoint_last_stall_seconds",
    "Seconds of the last checkpoint for which GPUs stood: all of it when sync, the copy alone when async.",
    "mount",
    "mode",
)
LAST_BYTES = gauge("gpuhost_checkpoint_last_bytes", "Bytes of the last checkpoint.", "mount", "mode")
LAST_RATE = gauge(
    "gpuhost_checkpoint_last_bytes_per_second",
    "Bytes of the last checkpoint by its duration. Good local storage takes 20e9.",
    "mount",
    "mode",
)
LAST_AT = gauge(
    "gpuhost_checkpoint_last_timestamp_seconds", "When the last checkpoint began, to a second.", "mount", "mode"
)
LAST_INTERVAL = gauge(
    "gpuhost_checkpoint_interval_seconds",
    "Seconds from the start of the same job's checkpoint before to that of the last one. Absent after a job's first.",
    "mount",
    "mode",
)
IN_PROGRESS = gauge(
    "gpuhost_checkpoint_in_progress",
    "Jobs on this host whose checkpoint has begun and not ended, as of 4 s ago, by mount (unknown until bytes tell) "
    "and by what its mode looks like so far. What was seen once stays at 0; summed over mount and mode they are all.",
    "mount",
    "mode",
)
MARKS = counter(
    "gpuhost_checkpoint_marks_total",
    "Marks that came over the marker socket, a start and an end for each checkpoint. taken: of a GPU's job, and used. "
    "unowned: of a process that has no GPU. malformed: not a mark. limited: more than 20 a second of one process.",
    "result",
)
RESULTS = ("taken", "unowned", "malformed", "limited")
SPECS = (
    CHECKPOINT_SECONDS,
    CHECKPOINT_BYTES,
    CHECKPOINT_LOST,
    LAST_SECONDS,
    LAST_STALL,
    LAST_BYTES,
    LAST_RATE,
    LAST_AT,
    LAST_INTERVAL,
    IN_PROGRESS,
    MARKS,
)


class _Kind:
    """What is kept of the checkpoints of one mount and mode."""

    def __init__(self, now: float) -> None:
        self.seconds = Histogram(_DURATIONS)
        self.bytes = Histogram(_SIZES)
        self.lost = 0.0
        self.last: Checkpoint | None = None
        self.interval: float | None = None
        self._starts: dict[str, float] = {}  # of each job's last one
        self._rises_from = now + AT_ZERO
        self._waiting: list[Checkpoint] = []

    def add(self, checkpoint: Checkpoint) -> None:
        self._waiting.append(checkpoint)
        if not checkpoint.whole:
            return
        before = self._starts.pop(checkpoint.job, None)
        self.interval = None if before is None else checkpoint.started - before
        self._starts[checkpoint.job] = checkpoint.started  # now the youngest
        if len(self._starts) > _MOST_JOBS:
            del self._starts[next(iter(self._starts))]
        self.last = checkpoint

    def rise(self, now: float) -> None:
        if now < self._rises_from:
            return
        for checkpoint in self._waiting:
            self.lost += checkpoint.gpu_seconds
            if checkpoint.whole:  # else nobody saw how long it took and what it wrote
                self.seconds.add(checkpoint.seconds)
                self.bytes.add(checkpoint.bytes)
        self._waiting.clear()


class Checkpoints:
    """All that have ended since the exporter started."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._mounts: set[str] = set()
        self._running: Counter[tuple[str, str]] = Counter({_BEFORE: 0})

    def add(self, checkpoint: Checkpoint, now: float) -> None:
        self._kinds.setdefault((self._mount(checkpoint.mount), checkpoint.mode), _Kind(now)).add(checkpoint)

    def progress(self, running: Iterable[tuple[str, str]]) -> Iterator[Sample]:
        """`running`: mount and mode of each that is in progress."""
        for kind in self._running:
            self._running[kind] = 0
        self._running.update((self._mount(mount), mode) for mount, mode in running)
        for (mount, mode), count in self._running.items():
            yield IN_PROGRESS(mount, mode, value=count)

    def _mount(self, mount: str) -> str:
        if mount not in self._mounts and len(self._mounts) >= _MOST_MOUNTS:
            return _OTHER_MOUNTS
        self._mounts.add(mount)
        return mount

    def samples(self, now: float, wall: float) -> Iterator[Sample]:
        """`wall`: when Clock.now() was 0, in seconds since the epoch."""
        for (mount, mode), kind in self._kinds.items():
            kind.rise(now)
            yield from kind.seconds.samples(CHECKPOINT_SECONDS, mount, mode)
            yield from kind.bytes.samples(CHECKPOINT_BYTES, mount, mode)
            yield CHECKPOINT_LOST(mount, mode, value=kind.lost)
            if kind.last:
                yield LAST_SECONDS(mount, mode, value=kind.last.seconds)
                yield LAST_STALL(mount, mode, value=kind.last.stalled)
                yield LAST_BYTES(mount, mode, value=kind.last.bytes)
                yield LAST_RATE(mount, mode, value=kind.last.rate)
                yield LAST_AT(mount, mode, value=wall + kind.last.started)
            if kind.interval is not None:
                yield LAST_INTERVAL(mount, mode, value=kind.interval)
