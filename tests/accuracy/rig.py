"""The whole exporter on real processes and files of this kernel; only the GPUs are simulated, and idle in step."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from support.daemon import Daemon, parse, select, value
from support.worker import Worker

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sim import control

# Nothing leaves the GPUs: copies would tell of a checkpoint by themselves.
IDLE = {"graphics": 0.02, "sm": 0.01, "tensor": 0.0, "dram": 0.01, "nvlink": 0.0, "power": 0.1, "pcie_tx": 0.0}
NOBODY = {"processes": 0, "graphics": 0.0, "sm": 0.0, "tensor": 0.0, "dram": 0.0, "nvlink": 0.0, "power": 0.0}
SETTLED = 9.0  # seconds after which an event is told: an episode's quiet, and what the ledger holds back
_PREFIX = "gpuhost_checkpoint_"


class Found(NamedTuple):
    """A checkpoint as the exporter told it."""

    mount: str
    mode: str
    started: float  # seconds since the epoch
    seconds: float
    stalled: float
    bytes: float

    @property
    def ended(self) -> float:
        return self.started + self.seconds


class Rig:
    """Two ranks of a job, each with a GPU, and a neighbour with none."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
        # In memory: replacing a file on a disk that a checkpoint is written to takes most of a second.
        self.memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.path = str(self.memory / "control.json")
        self.clock = SystemClock()
        control.create(self.path, "h100x8", "steady", self.clock, real_roots=True)
        environment = {"SLURM_JOB_ID": "77", "WORLD_SIZE": "2"}
        self.ranks = [Worker({**environment, "RANK": str(rank)}) for rank in range(2)]
        self.neighbour = Worker()
        self.train()
        self.sent = self._adapter()
        self.daemon = Daemon(
            self.folder,
            "--collector.ledger",
            f"--path.sysfs={self.memory}/sys",
            *("--simulate", "h100x8:steady", "--simulate.control", self.path),
        )
        self.found = []
        self._ended = {}
        self._ending = threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()

    def _adapter(self):
        """/sys as it is, but for the network: one adapter, whose counter of bytes sent is a file."""
        for real, below, left_out in (("/sys", "sys", "class"), ("/sys/class", "sys/class", "net")):
            (self.memory / below).mkdir()
            for entry in os.listdir(real):
                if entry != left_out:
                    (self.memory / below / entry).symlink_to(f"{real}/{entry}")
        for folder in ("statistics", "device"):
            (self.memory / f"sys/class/net/up0/{folder}").mkdir(parents=True)
        counters = self.memory / "sys/class/net/up0/statistics"
        for name in ("rx_bytes", "tx_bytes"):
            (counters / name).write_text("0\n")
        return counters / "tx_bytes"

    def __enter__(self):
        self.daemon.wait_until(
            lambda seen: any(
                dict(key)["processes"] == "process" for key in select(seen, "gpuhost_ledger_evidence_info", gpu="0")
            )
        )
        time.sleep(12)  # start-up is over after 10 s of tensor work
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._watching.join()
        self.daemon.stop()
        for worker in (*self.ranks, self.neighbour):
            worker.__exit__()
        shutil.rmtree(self.folder)
        shutil.rmtree(self.memory)

    @property
    def mount(self):
        """Where the folder lies."""
        mount = str(self.folder)
        while not os.path.ismount(mount):
            mount = os.path.dirname(mount)
        return mount

    def accounts(self, gpu):
        """Seconds booked by account."""
        found = select(self.daemon.series(), "gpuhost_gpu_time_seconds_total", gpu=gpu)
        return {dict(key)["account"]: seconds for key, seconds in found.items()}

    def train(self, **levels):
        held = [control.GpuChange(index, (rank.pid,), levels) for index, rank in enumerate(self.ranks)]
        control.change(self.path, held + [control.GpuChange(index, (), NOBODY) for index in range(2, 8)], self.clock)

    def stand(self, *command, seconds=0.0, who=None, **levels):
        """The GPUs idle while each rank (or `who`) does that, at least so long; (begin, end) since the epoch.

        A % in the command is the rank's number.
        """
        begin = time.time()
        self.train(**{**IDLE, **levels})
        self.together(who or self.ranks, *command)
        time.sleep(max(0.0, begin + seconds - time.time()))
        self.train()
        return begin, time.time()

    def upload(self, megabytes, seconds, copy):
        """The GPUs idle while what they hold is copied, and go on so while each rank sends it; (begin, end).

        The socket's other end is in the rank: what an adapter would count is counted as that goes.
        """
        begin = time.time()
        self.train(**{**IDLE, "pcie_tx": 5e9})
        time.sleep(copy)
        self.train(**IDLE)
        sending, ended, before = time.time(), threading.Event(), int(self.sent.read_text())
        whole = len(self.ranks) * megabytes * 1_000_000

        def count():
            while not ended.wait(0.1):
                part = min(1.0, (time.time() - sending) / seconds)
                (self.memory / "sent").write_text(f"{before + int(part * whole)}\n")
                os.replace(self.memory / "sent", self.sent)

        counting = threading.Thread(target=count)
        counting.start()
        self.together(self.ranks, "send", megabytes, seconds)
        self.train()
        end = time.time()
        ended.set()
        counting.join()
        return begin, end

    def together(self, who, *command):
        if not command:
            return
        for number, worker in enumerate(who):
            worker.start(*(word.replace("%", str(number)) if isinstance(word, str) else word for word in command))
        for worker in who:
            worker.finish()

    def _watch(self):
        while not self._ending.wait(0.5):
            lines = [line for line in self.daemon.text().splitlines() if line.startswith(_PREFIX)]
            series = parse("\n".join(lines) + "\n")
            for key, ended in select(series, f"{_PREFIX}last_timestamp_seconds").items():
                if ended != self._ended.get(key):
                    self._ended[key] = ended
                    labels = dict(key)
                    told = (
                        value(series, f"{_PREFIX}last_{name}", **labels)
                        for name in ("timestamp_seconds", "duration_seconds", "stall_seconds", "bytes")
                    )
                    self.found.append(Found(labels["mount"], labels["mode"], *told))
