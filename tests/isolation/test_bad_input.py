"""Damaged /proc and /sys: each damage costs the series of the device whose file it is, and no others.

The trees are a simulated host's, at rest. First every file that a collector opens, with damage that hypothesis
chooses; then the real process, with damage that comes and goes while it runs.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.daemon import Daemon, select, value
from support.gpus import FakeNvml, host_of

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.collectors.block import BlockCollector
from gpuhost_exporter.collectors.machine import MachineCollector
from gpuhost_exporter.collectors.nvme import NvmeCollector
from gpuhost_exporter.collectors.pressure import PressureCollector
from gpuhost_exporter.collectors.raid import RaidCollector
from gpuhost_exporter.collectors.rdma import RdmaCollector
from gpuhost_exporter.errors import SourceError
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.tree import Tree

# These read the same files again, or none of the tree's.
# What reads the same files at its own pace, and has tests of its own.
_SLOWER = ("contention", "storage", "filesystem", "pagecache", "nfs", "nvme_health", "platform", "rdma_ethernet")
OTHERS = [f"--no-collector.{name}" for name in _SLOWER]
SUBJECTS = (BlockCollector, NvmeCollector, RaidCollector, RdmaCollector, PressureCollector, MachineCollector)


def tree_at(folder):
    """An H100 host's trees, written once."""
    clock = SystemClock()
    control.create(str(folder / "control.json"), "h100x8", "steady", clock, frozen=600.0)
    Tree(str(folder / "control.json"), str(folder / "root"), clock).write()
    return folder / "root"


class Damage:
    """Puts something else in a file's place, and the file back at the end."""

    def __init__(self, path, what):
        self.path, self.what = Path(os.path.realpath(path)), what
        self.kept = self.path.with_name(f"{self.path.name}.kept")

    def __enter__(self):
        self.path.rename(self.kept)
        if isinstance(self.what, bytes):
            self.path.write_bytes(self.what)
        elif self.what == "truncated":
            text = self.kept.read_bytes()
            self.path.write_bytes(text[: len(text) // 2])
        elif self.what == "folder":
            self.path.mkdir()
        elif self.what == "loop":
            self.path.symlink_to(self.path)
        elif self.what == "endless":
            self.path.symlink_to("/dev/zero")
        elif self.what == "fifo":
            os.mkfifo(self.path)
        else:
            assert self.what == "absent"

    def __exit__(self, *_):
        if self.path.is_dir() and not self.path.is_symlink():
            self.path.rmdir()
        else:
            self.path.unlink(missing_ok=True)
        self.kept.rename(self.path)


# Each file that a collector opens.


class Recorded:
    """A host, what each collector tells of it, and whose file each is that it opens."""

    def __init__(self, root):
        self.root = root
        self.owners = defaultdict(set)  # real path -> {(collector, device, or None for the whole subject)}
        opened = os.open
        with pytest.MonkeyPatch.context() as patch:
            for kind in SUBJECTS:
                patch.setattr(os, "open", self._recorder(kind, opened))
                samples, error = poll(root, kind)
                assert error is None
                self.told = {**getattr(self, "told", {}), kind.name: samples}

    def _recorder(self, kind, opened):
        def record(path, *arguments, **named):
            if os.path.exists(path) and Path(path).is_relative_to(self.root):  # else a table of our own
                self.owners[os.path.realpath(path)].add((kind.name, self._device(Path(path))))
            return opened(path, *arguments, **named)

        return record

    def _device(self, path):
        parts = path.relative_to(self.root).parts
        if parts[:2] == ("sys", "block") or (parts[:2] == ("sys", "class") and parts[2] in ("nvme", "infiniband")):
            return parts[2 if parts[1] == "block" else 3]
        if parts[:2] == ("proc", "pressure"):
            return parts[2]
        for link in (self.root / "sys/class/nvme").iterdir():
            board = os.path.realpath(self.root / "sys/bus/pci/devices" / (link / "address").read_text().strip())
            if Path(board).is_relative_to(path.parent):
                return link.name
        return None


def poll(root, kind):
    """{(name, labels): value}, and the error that ended the poll."""
    samples = {}
    try:
        for spec, labels, figure in kind(host_of(FakeNvml(), root)).poll(0.0):
            samples[spec.name, labels] = figure
    except SourceError as error:
        return {}, error
    return samples, None


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return Recorded(tree_at(tmp_path_factory.mktemp("recorded")))


def test_the_files_of_every_collector_are_known(recorded):
    owners = {owner for found in recorded.owners.values() for owner in found}
    assert {name for name, _ in owners} == {kind.name for kind in SUBJECTS}
    assert {("nvme", "nvme0"), ("raid", "md0"), ("rdma", "mlx5_8"), ("pressure", "io"), ("block", None)} <= owners
    assert len(recorded.owners) > 200


DAMAGES = (
    "absent",
    "truncated",
    "folder",
    "loop",
    "endless",
    "fifo",
    b"",
    b"\n",
    b"-1\n",
    b"nan\n",
    b"9" * 400,
    b"\x00",
)


@settings(max_examples=250, deadline=None)
@given(
    number=st.integers(min_value=0),
    what=st.sampled_from(DAMAGES) | st.binary(max_size=60) | st.text().map(str.encode),
)
def test_a_damaged_file_costs_the_series_of_its_device_only(recorded, number, what):
    paths = sorted(recorded.owners)
    path = paths[number % len(paths)]
    with Damage(path, what):
        found = {kind: poll(recorded.root, kind) for kind in SUBJECTS}
    for kind, (samples, error) in found.items():
        devices = {device for collector, device in recorded.owners[path] if collector == kind.name}
        assert all(math.isfinite(figure) for figure in samples.values())
        assert all(figure >= 0 for (name, _), figure in samples.items() if "temperature" not in name)
        if None not in devices:
            assert error is None, "one device's file is no reason to give up the others"
            before = recorded.told[kind.name]
            strangers = {key: figure for key, figure in before.items() if not devices & set(key[1])}
            assert {key: figure for key, figure in samples.items() if not devices & set(key[1])} == strangers


# The real process.


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A daemon that reads these trees five times a second; without NVIDIA's library, as most machines are."""
    folder = tmp_path_factory.mktemp("host")
    root = tree_at(folder)
    quick = "".join(f"[collector.{kind.name}]\ninterval = 0.2\n" for kind in SUBJECTS)
    (folder / "exporter.toml").write_text(f"{quick}[collector.inventory]\ninterval = 0.2\n")
    paths = (f"--path.procfs={root}/proc", f"--path.sysfs={root}/sys")
    with Daemon(folder, f"--config.file={folder}/exporter.toml", *paths, *OTHERS) as daemon:
        daemon.ready()
        daemon.wait_until(lambda seen: select(seen, "gpuhost_kernel_log_up"), 10)
        yield daemon, root


def polled(daemon, times=3):
    """The series once every quick collector has polled so often from now."""
    first = daemon.series()
    names = [kind.name for kind in SUBJECTS] + ["inventory"]
    polls = {name: value(first, "gpuhost_collector_polls_total", collector=name) + times for name in names}
    return daemon.wait_until(
        lambda seen: all(
            value(seen, "gpuhost_collector_polls_total", collector=name) >= count for name, count in polls.items()
        ),
        10,
    )


def of_the_host(series):
    """What is told of the host, not of the exporter."""
    own = ("gpuhost_collector_", "gpuhost_exporter_", "gpuhost_nvml_", "gpuhost_inventory_")
    return {key for key in series if not key[0].startswith(own)}


# What other collectors tell from the same file.
HALF = b"some avg10=0.00 avg60=0.00 avg3"


@pytest.mark.parametrize(
    ("path", "what", "collector", "label", "device", "up"),
    [
        pytest.param("proc/diskstats", "absent", "block", None, None, 0, id="no diskstats"),
        pytest.param("proc/pressure/io", HALF, "pressure", "resource", "io", 1, id="half a line of pressure"),
        pytest.param("sys/block/md0/md/array_state", b"", "raid", "device", "md0", 1, id="empty array state"),
        pytest.param("sys/block/md0/md/raid_disks", b"\xff\x00", "raid", "device", "md0", 1, id="binary member count"),
        pytest.param("sys/class/nvme/nvme1/state", "absent", "nvme", "device", "nvme1", 1, id="no drive state"),
        pytest.param(
            "sys/class/infiniband/mlx5_3/ports/1/state",
            b"ACTIVE",
            "rdma",
            "device",
            "mlx5_3",
            1,
            id="garbage port state",
        ),
        pytest.param("proc/meminfo", b"", "machine", None, None, 1, id="empty meminfo"),
        pytest.param("proc/stat", "endless", "machine", None, None, 1, id="endless stat"),
    ],
)
def test_the_daemon_loses_what_is_damaged_says_so_once_and_finds_it_again(
    host, path, what, collector, label, device, up
):
    daemon, root = host
    names = {kind.name: {spec.name for spec in kind.specs} for kind in SUBJECTS}
    before = polled(daemon)
    logged = len(daemon.log())
    with Damage(root / path, what):
        during = polled(daemon, 6)
        told = daemon.log()[logged:]
    lost = of_the_host(before) - of_the_host(during)
    assert lost
    assert of_the_host(during) <= of_the_host(before)
    for name, labels in lost:
        assert name in names[collector]
        assert label is None or dict(labels)[label] == device
    states = {name: value(during, "gpuhost_collector_up", collector=name) for name in names}
    assert states == {**dict.fromkeys(names, 1), collector: up}
    failed = [
        sum(select(series, "gpuhost_collector_errors_total", collector=collector).values())
        for series in (before, during)
    ]
    assert failed[1] > failed[0] + 3
    assert [told.count(f"WARNING {name}: ") for name in names] == [name == collector for name in names], told
    assert of_the_host(polled(daemon)) == of_the_host(before)
    assert daemon.log()[logged:].count("reads again") == 1


def test_garbage_counters_cost_each_disk_its_own_and_sizes_stay(host):
    daemon, root = host
    before = polled(daemon)
    with Damage(root / "proc/diskstats", b"\x00\xff garbage\n259 0 nvme0n1 1 2 3\n"):
        during = polled(daemon)
    assert not select(during, "gpuhost_block_read_bytes_total")
    assert value(during, "gpuhost_array_up", device="md0") == 1
    assert not select(during, "gpuhost_collector_errors_total", kind="internal")
    assert of_the_host(polled(daemon)) == of_the_host(before)


def test_a_drive_that_disappears_is_missed_and_its_siblings_stay(host):
    daemon, root = host
    before = polled(daemon)
    board = Path(os.path.realpath(root / "sys/class/nvme/nvme2"))
    away = root / "away"
    links = {link: os.readlink(link) for link in (root / "sys/class/nvme/nvme2", root / "sys/block/nvme2n1")}
    shutil.move(board, away)
    for link in links:
        link.unlink()
    try:
        series = daemon.wait_until(lambda seen: select(seen, "gpuhost_inventory_missing", kind="drives"), 10)
        series = polled(daemon)
    finally:
        shutil.move(away, board)
        for link, target in links.items():
            link.symlink_to(target)
    lost = of_the_host(before) - of_the_host(series)
    assert {dict(labels).get("device") for _, labels in lost} <= {"nvme2", "nvme2n1", "nvme2n1p1", "md0"}
    assert ("gpuhost_nvme_up", (("device", "nvme2"),)) in lost
    assert value(series, "gpuhost_nvme_up", device="nvme1") == 1
    assert len(select(series, "gpuhost_inventory_missing", kind="drives")) == 1
    after = daemon.wait_until(lambda seen: not select(seen, "gpuhost_inventory_missing"), 10)
    assert value(after, "gpuhost_nvme_up", device="nvme2") == 1


@pytest.mark.parametrize("gone", ["proc", "sys"])
def test_without_a_whole_file_system_the_rest_is_served_and_it_comes_back(host, gone):
    daemon, root = host
    before = polled(daemon)
    (root / gone).rename(root / "away")
    try:
        during = polled(daemon, 5)
        assert daemon.get("/healthz")[0] == 200
    finally:
        (root / "away").rename(root / gone)
    there = {name for name, _ in of_the_host(during)}
    assert "gpuhost_simulated" in there
    assert "gpuhost_block_read_bytes_total" not in there, "it takes both"
    assert ("gpuhost_pressure_stalled_seconds_total" in there) == (gone == "sys")
    assert ("gpuhost_nvme_up" in there) == ("gpuhost_array_up" in there) == (gone == "proc")
    assert not select(during, "gpuhost_collector_errors_total", kind="internal")
    assert of_the_host(polled(daemon)) == of_the_host(before)


def test_a_lasting_fault_is_logged_once(host):
    daemon, root = host
    logged = len(daemon.log())
    with Damage(root / "proc/pressure/memory", b"?"), Damage(root / "sys/block/md0/md/level", "absent"):
        time.sleep(4)
        series = daemon.series()
        lines = daemon.log()[logged:].splitlines()
    assert value(series, "gpuhost_collector_errors_total", collector="pressure", kind="malformed") > 10
    assert len([line for line in lines if "pressure: memory" in line]) == 1
    assert len([line for line in lines if "WARNING" in line and "NVML" not in line]) <= 2
