"""What waits in memory to be written, and how much may.

    /proc/vmstat   nr_dirty 21977                       pages changed and not yet on their way
                   nr_writeback 512                     pages on their way
                   nr_dirtied 6200000000                pages ever changed, ever written
                   nr_written 5900000000
                   nr_dirty_threshold 87654321          from here on writers are held back to the drives' pace
                   nr_dirty_background_threshold 43827160   from here on the kernel writes without being asked

Writers are slowed down already half-way between the two thresholds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources.files import Root, read_text

_NAMES = (
    "nr_dirty",
    "nr_writeback",
    "nr_dirtied",
    "nr_written",
    "nr_dirty_background_threshold",
    "nr_dirty_threshold",
)


@dataclass(frozen=True, slots=True)
class Writeback:
    """Bytes. `dirtied` and `written` since boot, the rest now."""

    dirty: int
    writeback: int
    dirtied: int
    written: int
    background_threshold: int
    threshold: int

    def throttled(self) -> bool:
        """Whether the kernel makes those who write wait."""
        return self.dirty + self.writeback > (self.background_threshold + self.threshold) / 2


def read(root: Root) -> Writeback:
    path = f"{root.proc}/vmstat"
    try:
        return parse_vmstat(read_text(path), os.sysconf("SC_PAGE_SIZE"))
    except Malformed as error:
        raise Malformed(f"{path}: {error}") from error


def parse_vmstat(text: str, page_bytes: int) -> Writeback:
    told = dict(line.split(" ", 1) for line in text.splitlines() if line.startswith("nr_") and " " in line)
    pages = []
    for name in _NAMES:
        number = told.get(name, "")
        if not (number.isascii() and number.isdecimal()) or len(number) > 20:
            raise Malformed(f"expected '{name} PAGES', got {number[:40]!r}")
        pages.append(int(number) * page_bytes)
    return Writeback(*pages)
