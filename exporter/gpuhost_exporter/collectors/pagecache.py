"""The page cache: what waits to be written, and when writers are made to wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from gpuhost_exporter.collector import Collector
from gpuhost_exporter.sources import pagecache
from gpuhost_exporter.specs import Sample, Spec, counter, gauge

DIRTY = gauge(
    "gpuhost_pagecache_dirty_bytes",
    "Bytes that were written by programs and wait in memory for the drives. Up to the background threshold is normal.",
)
WRITEBACK = gauge("gpuhost_pagecache_writeback_bytes", "Bytes on their way from memory to the drives now.")
BACKGROUND = gauge(
    "gpuhost_pagecache_background_threshold_bytes",
    "Dirty bytes from which the kernel writes without being asked.",
)
THRESHOLD = gauge(
    "gpuhost_pagecache_threshold_bytes",
    "Dirty bytes at which writers are stopped. They are slowed down from half-way between the background threshold "
    "and this one: a checkpoint larger than that runs at the drives' pace.",
)
DIRTIED = counter(
    "gpuhost_pagecache_dirtied_bytes_total",
    "Bytes that programs wrote into memory since boot. A checkpoint shows here at once, on the drives later.",
)
WRITTEN = counter(
    "gpuhost_pagecache_written_bytes_total",
    "Bytes that the kernel wrote from memory to drives and servers since boot. Direct I/O is not among them.",
)


class PageCacheCollector(Collector):
    name: ClassVar[str] = "pagecache"
    help: ClassVar[str] = "Bytes that wait in memory to be written, and the thresholds"
    source: ClassVar[str] = "/proc/vmstat"
    interval: ClassVar[float] = 1.0
    specs: ClassVar[tuple[Spec, ...]] = (DIRTY, WRITEBACK, BACKGROUND, THRESHOLD, DIRTIED, WRITTEN)

    def poll(self, now: float) -> Iterator[Sample]:
        memory = pagecache.read(self.host.root)
        yield DIRTY(value=memory.dirty)
        yield WRITEBACK(value=memory.writeback)
        yield BACKGROUND(value=memory.background_threshold)
        yield THRESHOLD(value=memory.threshold)
        yield DIRTIED(value=memory.dirtied)
        yield WRITTEN(value=memory.written)
