"""Block devices on top of others: a partition on its disk, a mapping (LVM, dm-crypt) or an array on what it is made of.

/sys/dev/block/253:0 -> ../../devices/virtual/block/dm-0
/sys/block/dm-0/slaves/md0 -> ../../md0             one link for each device below
/sys/block/nvme4n1/nvme4n1p2/partition   2          only partitions have it; their folder is in the disk's
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from gpuhost_exporter.sources.files import Root, followed, link_target, optional_names

_DEEPEST = 8  # LVM on dm-crypt on md on partitions is four


@dataclass(frozen=True, slots=True)
class Stack:
    """`arrays` are the md arrays between the device and its drives. A drive that is gone is not among them."""

    device: str
    arrays: tuple[str, ...]
    drives: tuple[str, ...]


def stack(root: Root, number: str) -> Stack | None:
    """What is below the device of that number ("259:3"); None where no such block device is."""
    folder = link_target(f"{root.sys}/dev/block/{number}")
    return stack_at(folder) if os.path.isdir(folder) else None


def stack_at(folder: str) -> Stack:
    """What is below the device that has this folder in /sys/devices."""
    arrays: dict[str, None] = {}
    drives: dict[str, None] = {}
    _descend(folder, arrays, drives, _DEEPEST)
    return Stack(os.path.basename(folder), tuple(arrays), tuple(drives))


def drive_folder(folder: str) -> str:
    """The disk's folder of a partition's; any other device's own."""
    return os.path.dirname(folder) if os.path.exists(f"{folder}/partition") else folder


def _descend(folder: str, arrays: dict[str, None], drives: dict[str, None], left: int) -> None:
    whole = drive_folder(folder)
    name = os.path.basename(whole)
    is_array = os.path.isdir(f"{whole}/md")
    if is_array:
        arrays[name] = None
    below = optional_names(f"{whole}/slaves")
    if not below and not is_array:
        drives[name] = None
    elif left:
        for slave in below:
            target = followed(f"{whole}/slaves", slave)
            if os.path.isdir(target):
                _descend(target, arrays, drives, left - 1)
