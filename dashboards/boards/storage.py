"""Storage: what local storage delivers when it is asked for more, what holds it back, and how its parts are."""

from kit.board import HOST, Board, Section
from kit.panels import answer, bars, timeline
from kit.parts import ACT, FINE, GOOD, PLAIN, WATCH, Line, below
from kit.tables import Column, listing

H = HOST
_NO_ARRAY = "No md array on this host"
_NO_DRIVE = "No NVMe drive on this host, or its collector is off"
_IDLE = "Nothing asked the storage for more than it gives in this time, so it is not judged"
DELIVERED = "device:gpuhost_storage_delivered_bytes_per_second:ratio_increase1h"
OF_TARGET = ((None, PLAIN), (0, ACT), (0.5, WATCH), (1, GOOD))


def _targets(direction: str) -> tuple[Line, ...]:
    return tuple(
        Line(
            f"max by (device) ({H('gpuhost_storage_target_bytes_per_second', direction=direction, band=band)})",
            f"{band}, {{{{device}}}}",
            dashed=True,
            colour=colour,
        )
        for band, colour in (("good", GOOD), ("poor", WATCH))
    )


BOARD = Board(
    uid="gpuhost-storage",
    title="gpuhost / Storage",
    description="What local storage delivers while asked for more, against its target; the limiting member; health.",
    checkpoints=True,
    sections=(
        Section(
            (
                answer(
                    "Arrays served",
                    f"sum({H('gpuhost_array_up')}) / count({H('gpuhost_array_up')})",
                    why="md arrays that the kernel serves with the members that hold their data. Good is 100 %. A "
                    "RAID0 without a drive is down at once, though md still calls it clean.",
                    unit="percentunit",
                    decimals=0,
                    steps=below(1),
                    empty=_NO_ARRAY,
                ),
                answer(
                    "Write demand met",
                    f"min({H(DELIVERED, direction='write')}"
                    f" / on (cluster, job, instance, device, direction) "
                    f"{H('gpuhost_storage_target_bytes_per_second', band='good')})",
                    why="Bytes a second written over the last hour while more was asked for, as a share of the "
                    "target. Good is 100 % and more.",
                    unit="percentunit",
                    decimals=0,
                    steps=OF_TARGET,
                    empty="Not asked for more than it gives",
                    width=4,
                ),
                answer(
                    "Read demand met",
                    f"min({H(DELIVERED, direction='read')}"
                    f" / on (cluster, job, instance, device, direction) "
                    f"{H('gpuhost_storage_target_bytes_per_second', band='good')})",
                    why="Bytes a second read over the last hour while more was asked for, as a share of the "
                    "target. Good is 100 % and more.",
                    unit="percentunit",
                    decimals=0,
                    steps=OF_TARGET,
                    empty="Not asked for more than it gives",
                    width=4,
                ),
                answer(
                    "Slowest member",
                    f"max({H('gpuhost_storage_member_latency_ratio')})",
                    why="Latency of the array member that is slowest, as a multiple of its siblings' median. Good is "
                    "about 1; above 2 it holds the array back.",
                    unit="suffix: x",
                    decimals=1,
                    steps=((None, GOOD), (2, WATCH)),
                    empty="No I/O on an array in the last minute",
                ),
                answer(
                    "Drives up",
                    f"sum({H('gpuhost_nvme_up')}) / count({H('gpuhost_nvme_up')})",
                    why="NVMe controllers that take I/O. Good is 100 %.",
                    unit="percentunit",
                    decimals=0,
                    steps=below(1),
                    empty=_NO_DRIVE,
                ),
                answer(
                    "Room left, fullest",
                    f"min({H('gpuhost_filesystem_free_bytes')} / {H('gpuhost_filesystem_size_bytes')})",
                    why="Share of the fullest local file system that is free. Good is more than the next checkpoint "
                    "needs: see the table of file systems.",
                    unit="percentunit",
                    decimals=0,
                    steps=((None, PLAIN), (0, WATCH), (0.1, GOOD)),
                    empty="No local file system is watched",
                ),
            ),
            height=4,
        ),
        Section(
            (
                timeline(
                    "Arrays: written",
                    (
                        Line(
                            f"rate({H('gpuhost_block_written_bytes_total', device='~md.*')}[$__rate_interval])",
                            "{{device}}",
                        ),
                        *_targets("write"),
                    ),
                    why="Bytes a second to the arrays. Reaching the good line while checkpoints are written is good; "
                    "below it in quiet times means nothing.",
                    unit="Bps",
                    empty=_NO_ARRAY,
                    width=12,
                ),
                timeline(
                    "Arrays: read",
                    (
                        Line(
                            f"rate({H('gpuhost_block_read_bytes_total', device='~md.*')}[$__rate_interval])",
                            "{{device}}",
                        ),
                        *_targets("read"),
                    ),
                    why="Bytes a second from the arrays. Reaching the good line while data or a model is loaded is "
                    "good; below it in quiet times means nothing.",
                    unit="Bps",
                    empty=_NO_ARRAY,
                    width=12,
                ),
            ),
            height=8,
        ),
        Section(
            (
                timeline(
                    "Delivered while asked for more",
                    (
                        Line(
                            f"rate({H('gpuhost_storage_saturated_bytes_total')}[5m])"
                            f" / (rate({H('gpuhost_storage_saturated_seconds_total')}[5m]) > 0.01)",
                            "{{device}} {{direction}}",
                        ),
                        *(
                            Line(H("gpuhost_target_storage_bytes_per_second", band=band), band, True, colour)
                            for band, colour in (("good", GOOD), ("poor", WATCH))
                        ),
                    ),
                    why="The rate in just those seconds, over 5 minutes. It appears only while there is demand. Good "
                    "is above the line good; below poor, checkpoints and loading wait for storage.",
                    unit="Bps",
                    empty=_IDLE,
                ),
                timeline(
                    "Held back by",
                    (
                        Line(
                            f"sum by (device, by) (rate({H('gpuhost_storage_limited_seconds_total')}[5m])) > 0",
                            "{{device}}: {{by}}",
                        ),
                    ),
                    why="Share of 5 minutes in which something held the storage back. array: all drives at their limit,"
                    " more drives would help. member: one drive holds the others back. submitter: the kernel hands "
                    "out large buffered writes too slowly; direct I/O would help.",
                    unit="percentunit",
                    empty="Nothing held the storage back in this time: good",
                ),
                bars(
                    "Members: latency against siblings",
                    (
                        Line(
                            f"max by (device, member) ({H('gpuhost_storage_member_latency_ratio')})",
                            "{{device}} {{member}}",
                        ),
                    ),
                    why="Each member's latency as a multiple of the median of its siblings. Good is about 1.",
                    unit="suffix: x",
                    decimals=2,
                    most=4,
                    steps=((None, GOOD), (2, WATCH)),
                    empty="No I/O on an array in the last minute",
                ),
            ),
            height=8,
        ),
        Section(
            (
                listing(
                    "Drives",
                    (
                        Column("Drive", label="device", width=90),
                        Column(
                            "Up",
                            f"max by (device) ({H('gpuhost_nvme_up')})",
                            states={"1": ("yes", GOOD), "0": ("no", ACT)},
                            width=60,
                        ),
                        Column(
                            "PCIe",
                            f"max by (device) ({H('gpuhost_nvme_pcie_generation')} * {H('gpuhost_nvme_pcie_width')}"
                            f" / ({H('gpuhost_nvme_pcie_generation_max')} * {H('gpuhost_nvme_pcie_width_max')}))",
                            unit="percentunit",
                            decimals=0,
                            steps=below(1),
                        ),
                        Column(
                            "Heat",
                            f"max by (device) ({H('gpuhost_nvme_temperature_celsius', sensor='composite')})",
                            unit="celsius",
                            decimals=0,
                            steps=((None, PLAIN), (70, WATCH)),
                        ),
                        Column(
                            "Worn",
                            f"max by (device) ({H('gpuhost_nvme_wear_ratio')})",
                            unit="percentunit",
                            decimals=0,
                            steps=((None, PLAIN), (0.9, WATCH), (1, ACT)),
                        ),
                        Column(
                            "Spare left",
                            f"max by (device) ({H('gpuhost_nvme_spare_ratio')})",
                            unit="percentunit",
                            decimals=0,
                        ),
                        Column(
                            "Errors",
                            f"max by (device) ({H('gpuhost_nvme_media_errors_total')})",
                            decimals=0,
                            steps=((None, PLAIN), (1, WATCH)),
                        ),
                        Column(
                            "Warnings",
                            f"sum by (device) ({H('gpuhost_nvme_critical_warning')})",
                            steps=((None, GOOD), (1, ACT)),
                        ),
                        Column(
                            "Slowed",
                            f"sum by (device) (increase({H('gpuhost_nvme_thermal_seconds_total')}[1h]))",
                            unit="s",
                            decimals=0,
                            steps=((None, PLAIN), (1, WATCH)),
                        ),
                    ),
                    why="Health of every NVMe drive, from its own log. PCIe: of the drive's best. Errors: its medium."
                    " Warnings are the drive's: one is a drive to exchange. Slowed: by heat, in the last hour."
                    " Without CAP_SYS_ADMIN only the first columns are known.",
                    sort="Drive",
                    descending=False,
                    empty=_NO_DRIVE,
                    width=15,
                ),
                listing(
                    "Arrays",
                    (
                        Column("Array", label="device", width=80),
                        Column(
                            "Served",
                            f"max by (device) ({H('gpuhost_array_up')})",
                            states={"1": ("yes", GOOD), "0": ("no", ACT)},
                            width=70,
                        ),
                        Column(
                            "Members",
                            f"sum by (device) ({H('gpuhost_array_members_expected')})",
                            decimals=0,
                        ),
                        Column(
                            "Not in order",
                            f"count by (device) ({H('gpuhost_array_member_up')} == 0)"
                            f" or 0 * max by (device) ({H('gpuhost_array_up')})",
                            steps=((None, GOOD), (1, ACT)),
                        ),
                        Column(
                            "Rebuilt",
                            f"max by (device) ({H('gpuhost_array_sync_progress_ratio')})",
                            unit="percentunit",
                            decimals=0,
                        ),
                    ),
                    why="md arrays. Good is served with every member in order; Rebuilt is empty unless a recovery, "
                    "resync or check is under way.",
                    sort="Array",
                    descending=False,
                    empty=_NO_ARRAY,
                    width=9,
                ),
            ),
            height=10,
            title="Health",
        ),
        Section(
            (
                timeline(
                    "Waiting to be written",
                    (
                        Line(H("gpuhost_pagecache_dirty_bytes"), "dirty", colour=FINE),
                        Line(H("gpuhost_pagecache_writeback_bytes"), "being written"),
                        Line(
                            H("gpuhost_pagecache_background_threshold_bytes"),
                            "kernel begins to write",
                            dashed=True,
                        ),
                        Line(
                            H("gpuhost_pagecache_threshold_bytes"),
                            "writers are stopped",
                            dashed=True,
                            colour=WATCH,
                        ),
                    ),
                    why="Bytes in memory that wait for the drives. Writers are slowed half-way between the lines: a "
                    "checkpoint larger than that runs at the drives' pace.",
                    unit="decbytes",
                    empty="The pagecache collector is off",
                    width=8,
                ),
                timeline(
                    "Drives: latency of a request",
                    (
                        Line(
                            f"(rate({H('gpuhost_block_read_seconds_total', device='~nvme.*')}[$__rate_interval])"
                            f" + rate({H('gpuhost_block_write_seconds_total', device='~nvme.*')}[$__rate_interval]))"
                            f" / ((rate({H('gpuhost_block_reads_completed_total', device='~nvme.*')}[$__rate_interval])"
                            f" + rate({H('gpuhost_block_writes_completed_total', device='~nvme.*')}"
                            "[$__rate_interval])) > 0)",
                            "{{device}}",
                        ),
                    ),
                    why="Mean time from request to completion. Good NVMe stays below a millisecond for small requests; "
                    "one drive above its siblings is the one to look at.",
                    unit="s",
                    empty="No I/O on a drive in this time",
                    width=8,
                ),
                listing(
                    "File systems",
                    (
                        Column("Mounted at", label="mountpoint"),
                        Column(
                            "Free",
                            f"max by (mountpoint) ({H('gpuhost_filesystem_free_bytes')})",
                            unit="decbytes",
                        ),
                        Column(
                            "Free of all",
                            f"max by (mountpoint) ({H('gpuhost_filesystem_free_bytes')}"
                            f" / {H('gpuhost_filesystem_size_bytes')})",
                            unit="percentunit",
                            decimals=0,
                            steps=((None, PLAIN), (0, WATCH), (0.1, GOOD)),
                        ),
                    ),
                    why="Local file systems. Good is room for the next checkpoint: a 70B model's takes 140 GB.",
                    sort="Free of all",
                    descending=False,
                    empty="No local file system is watched",
                    width=8,
                ),
            ),
            title="Detail",
        ),
    ),
)
