"""What the storage collectors cost a minute on a host with 24 NVMe drives in three arrays.

    python tests/bench/storage.py [POLLS]

The tree lies on a tmpfs and its counters move between polls; CPU is this process's own, without writing the tree. Once
with drives that answer, and once while one leaves the command for its health log unanswered for a minute.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from support.drives import Controllers

from gpuhost_exporter.board import Board
from gpuhost_exporter.collectors.block import BlockCollector
from gpuhost_exporter.collectors.filesystem import FilesystemCollector
from gpuhost_exporter.collectors.nfs import NfsCollector
from gpuhost_exporter.collectors.nvme import NvmeCollector
from gpuhost_exporter.collectors.nvme_health import NvmeHealthCollector
from gpuhost_exporter.collectors.pagecache import PageCacheCollector
from gpuhost_exporter.collectors.raid import RaidCollector
from gpuhost_exporter.collectors.storage import StorageCollector
from gpuhost_exporter.config import Settings
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.mounts import Capacities
from gpuhost_exporter.sources.nvme_health import DriveHealth, DriveReader
from gpuhost_exporter.targets import Targets

DRIVES, ARRAYS = 24, 3


class Moving:
    """A clock that a poll advances by its interval."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    wall = now


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def link(folder: Path, name: str, target: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(folder / target)


def build(folder: Path) -> None:
    for number in range(DRIVES):
        name, address = f"nvme{number}n1", f"0000:{number + 0x20:02x}:00.0"
        device = f"sys/devices/pci0000:00/{address}"
        disk = f"{device}/nvme/nvme{number}/{name}"
        ends = {f"{device}/{end}_link_speed": "32.0 GT/s PCIe" for end in ("current", "max")}
        ends |= {f"{device}/{end}_link_width": "4" for end in ("current", "max")}
        put(
            folder,
            ends | {f"{disk}/size": "15002931888", f"{disk}/queue/max_sectors_kb": "256", f"{disk}/dev": "259:0"},
        )
        put(folder, {f"dev/nvme{number}": ""})
        put(folder, {f"{device}/nvme/nvme{number}/{file}": text for file, text in (
            ("state", "live"), ("transport", "pcie"), ("address", address), ("serial", f"S{number}"),
        )})  # fmt: skip
        link(folder, f"sys/block/{name}", disk)
        link(folder, f"sys/class/nvme/nvme{number}", f"{device}/nvme/nvme{number}")
        link(folder, f"sys/bus/pci/devices/{address}", device)
    mounts = []
    for number in range(ARRAYS):
        md = f"sys/devices/virtual/block/md{number}"
        level = {"level": "raid0", "raid_disks": str(DRIVES // ARRAYS), "array_state": "clean", "chunk_size": "524288"}
        put(folder, {f"{md}/md/{file}": text for file, text in level.items()} | {f"{md}/size": "1"})
        for slot in range(DRIVES // ARRAYS):
            drive = number * DRIVES // ARRAYS + slot
            name = f"nvme{drive}n1"
            put(folder, {f"{md}/md/dev-{name}/state": "in_sync", f"{md}/md/dev-{name}/slot": str(slot)})
            disk = f"sys/devices/pci0000:00/0000:{drive + 0x20:02x}:00.0/nvme/nvme{drive}/{name}"
            link(folder, f"{md}/md/dev-{name}/block", disk)
            link(folder, f"{md}/slaves/{name}", disk)
        link(folder, f"sys/block/md{number}", md)
        link(folder, f"sys/dev/block/9:{number}", md)
        mounts.append(f"{number} 1 9:{number} / /data{number} rw - xfs /dev/md{number} rw")
    names = ("dirty", "writeback", "dirtied", "written", "dirty_threshold", "dirty_background_threshold")
    fill = "\n".join(f"nr_other_{number} 123456" for number in range(150))
    put(folder, {
        "proc/self/mountinfo": "\n".join(mounts),
        "proc/self/mountstats": "device proc mounted on /proc with fstype proc",
        "proc/vmstat": fill + "\n" + "\n".join(f"nr_{name} 1000" for name in names),
        "proc/pressure/io": "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0 avg60=0 avg300=0 total=5",
    })  # fmt: skip


def diskstats(folder: Path, poll: int) -> None:
    busy = f"{9000 * poll} 0 {4_000_000 * poll} {20_000 * poll} {9 * poll} 0 72 1 20 {1000 * poll} {20_000 * poll}"
    lines = [f" 259 {number} nvme{number}n1 {busy} 0 0 0 0 0 0" for number in range(DRIVES)]
    lines += [f"   9 {number} md{number} {busy} 0 0 0 0 0 0" for number in range(ARRAYS)]
    (folder / "proc/diskstats").write_text("\n".join(lines))


KINDS = (
    StorageCollector, BlockCollector, PageCacheCollector, RaidCollector, FilesystemCollector, NfsCollector,
    NvmeCollector, NvmeHealthCollector,
)  # fmt: skip
READER_SECONDS = 2  # between two looks of the privileged reader


class Cost:
    """CPU seconds in all, and the longest turn by the clock on the wall."""

    def __init__(self) -> None:
        self.cpu = self.longest = 0.0

    def __call__(self, turn):
        cpu, wall = time.process_time(), time.perf_counter()
        result = turn()
        self.cpu += time.process_time() - cpu
        self.longest = max(self.longest, time.perf_counter() - wall)
        return result


def run(name: str, polls: int, *, hangs: bool) -> None:
    clock = Moving()
    root = Root.below(name)
    host = SimpleNamespace(
        root=root, board=Board(), settings=Settings(), targets=Targets.load({}), clock=clock,
        capacities=Capacities(lambda _: SimpleNamespace(f_frsize=4096, f_blocks=9, f_bavail=5)),
        drive_health=DriveHealth(),
    )  # fmt: skip
    drives = Controllers()
    reader = DriveReader(root, 60.0, clock, drives)
    answers = drives.hanging["nvme7"] = threading.Event()
    if not hangs:
        answers.set()
    subjects = [kind(host) for kind in KINDS]
    costs = {kind.name: Cost() for kind in KINDS} | {"reader": Cost()}
    for poll in range(1, polls + 1):
        diskstats(Path(name), poll)
        clock.at += 1
        if poll % READER_SECONDS == 0:
            host.drive_health.put(costs["reader"](reader.look))
        if poll == 61:
            answers.set()
        for subject in subjects:
            if poll % subject.interval == 0:
                samples = costs[subject.name](lambda subject=subject: tuple(subject.poll(clock.at)))
                assert samples or isinstance(subject, NfsCollector)
    print(
        f"{DRIVES} drives, {ARRAYS} arrays, {polls} s, {'one drive silent for 60 s' if hangs else 'all drives answer'}:"
    )
    for subject, cost in costs.items():
        print(f"  {subject:<12}{60 * cost.cpu / polls:6.3f} CPU s/min, longest poll {1000 * cost.longest:6.1f} ms")
    print(f"  {'all':<12}{60 * sum(cost.cpu for cost in costs.values()) / polls:6.3f} CPU s/min")


def main() -> None:
    polls = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        build(Path(name))
        for hangs in (False, True):
            run(name, polls, hangs=hangs)


if __name__ == "__main__":
    main()
