"""The whole exporter on real processes and files; only the GPUs are simulated, and idle in step."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from support.daemon import Daemon, select, value
from support.worker import Worker

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sim import control

MB = 1_000_000
SETTLED = 9.0  # seconds after which an event is told: an episode's quiet, and what the ledger holds back
# Nothing leaves the GPUs: copies would tell of a checkpoint by themselves.
IDLE = {"graphics": 0.02, "sm": 0.01, "tensor": 0.0, "dram": 0.01, "nvlink": 0.0, "power": 0.1, "pcie_tx": 0.0}
NOBODY = {"processes": 0, "graphics": 0.0, "sm": 0.0, "tensor": 0.0, "dram": 0.0, "nvlink": 0.0, "power": 0.0}


class Rig:
    """Two ranks of a job, each with a GPU, and a host that is theirs alone."""

    def __init__(self, folder):
        self.folder = folder
        self.path = str(folder / "control.json")
        self.clock = SystemClock()
        control.create(self.path, "h100x8", "steady", self.clock, real_roots=True)
        environment = {"SLURM_JOB_ID": "77", "WORLD_SIZE": "2"}
        self.ranks = [Worker({**environment, "RANK": str(rank)}) for rank in range(2)]
        self.train()
        self.daemon = Daemon(
            folder, "--collector.ledger", "--simulate", "h100x8:steady", "--simulate.control", self.path
        )

    def train(self, **levels):
        held = [control.GpuChange(index, (rank.pid,), levels) for index, rank in enumerate(self.ranks)]
        control.change(self.path, held + [control.GpuChange(index, (), NOBODY) for index in range(2, 8)], self.clock)

    def stand(self, seconds, *steps, **levels):
        """The GPUs idle while each rank takes these steps, at least so long. Bytes are the caller's to know."""
        begin = self.clock.now()
        self.train(**{**IDLE, **levels})
        for name, *words in steps:
            for number, rank in enumerate(self.ranks):
                rank.do(name, *(word.replace("%", str(number)) if isinstance(word, str) else word for word in words))
        time.sleep(max(0.0, begin + seconds - self.clock.now()))
        self.train()

    def checkpoints(self):
        """(how many, bytes of all, by mount) since the start."""
        series = self.daemon.series()
        count = select(series, "gpuhost_checkpoint_size_bytes_count")
        size = select(series, "gpuhost_checkpoint_size_bytes_sum")
        return sum(count.values()), sum(size.values()), {dict(key)["mount"] for key in count}

    def after(self):
        time.sleep(SETTLED)
        return self.checkpoints()

    def close(self):
        self.daemon.stop()
        for rank in self.ranks:
            rank.__exit__()


@pytest.fixture
def rig():
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    started = Rig(folder)
    started.daemon.wait_until(
        lambda seen: any(
            dict(key)["processes"] == "process" for key in select(seen, "gpuhost_ledger_evidence_info", gpu="0")
        )
    )
    time.sleep(12)  # start-up is over after 10 s of tensor work
    yield started
    started.close()
    shutil.rmtree(folder)


def test_a_checkpoint_of_real_files_is_told_with_its_bytes_and_mount(rig):
    mount = str(rig.folder)
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    # Still open when it is looked at: where a file was that has been closed within the second is not told.
    rig.stand(3.0, ("keep", f"{rig.folder}/rank%.pt", 400))
    count, size, mounts = rig.after()
    assert count == 1
    assert size == pytest.approx(800 * MB, rel=0.05)
    assert mounts == {mount}
    series = rig.daemon.series()
    assert value(series, "gpuhost_gpu_time_seconds_total", gpu="0", account="checkpoint") == pytest.approx(3, abs=1.2)
    assert not value(series, "gpuhost_gpu_time_seconds_total", gpu="5", account="checkpoint")


EVENTS = {
    "buffered": (800, [("write", "{}/rank%.pt", 400)]),
    "direct": (839, [("direct", "{}/rank%.pt", 400)]),
    "mapped": (800, [("mapped", "{}/rank%.pt", 400)]),
    "overwrite": (800, [("overwrite", "{}/rank%.pt", 400)]),
    "child": (800, [("fork", "write", "{}/rank%.pt", 400), ("reap",)]),
    "tmpfs": (800, [("write", "/dev/shm/gpuhost-test-%", 400)]),
}
DECOYS = {
    "log": [("write", "{}/rank%.log", 5)],
    "reading": [("read", "{}/rank%.pt")],
    "compile cache": [("write", "{}/cache%.so", 60)],
    "burning": [("burn", 2.0)],
    "nothing": [],
}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_checkpoints_are_told_from_decoys(rig, capsys):
    found, rows = {}, []
    for kind in (*EVENTS, *DECOYS):
        size, steps = EVENTS.get(kind, (0, DECOYS.get(kind)))
        before = rig.checkpoints()
        steps = [[word.format(rig.folder) if isinstance(word, str) else word for word in step] for step in steps]
        rig.stand(3.0, *steps)
        after = rig.after()
        told = (after[0] - before[0], (after[1] - before[1]) / MB)
        rows.append((kind, size, *told))
        found.setdefault(kind, []).append(told[0] == (1 if size else 0))
        if size:
            assert told[0] == 0 or told[1] == pytest.approx(size, rel=0.05), rows[-1]
    for number in range(2):
        Path(f"/dev/shm/gpuhost-test-{number}").unlink()
    right = sum(row[2] == 1 for row in rows if row[1])
    claimed = sum(row[2] for row in rows)
    with capsys.disabled():
        print(f"\n{'kind':16}{'MB':>6}{'told':>6}{'MB told':>9}")
        for kind, size, count, megabytes in rows:
            print(f"{kind:16}{size:6}{count:6.0f}{megabytes:9.0f}")
        print(f"precision {right / max(1, claimed):.2f}, recall {right / sum(bool(row[1]) for row in rows):.2f}")
    assert all(all(each) for each in found.values()), rows
