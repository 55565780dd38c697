"""A tree of files in place of /proc, and a follower of the GPU processes in it."""

from __future__ import annotations

import shutil

from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.follow import Follower
from support.fakes import FakeClock


class Proc:
    def __init__(self, folder):
        self.folder = folder / "proc"
        self.clock = FakeClock()
        self.clock.time = 1000.0
        self.follower = Follower(Root.below(str(folder)), self.clock)

    def put(self, pid, *, start=0, ppid=1, written=0, read=0, children=(), state="S", comm="a) b", **told):
        fields = {"session": 6, "flags": 9, "faults": 10, "reaped": 11, "ticks": 14, "delay": 42}
        folder = self.folder / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        words = dict.fromkeys(range(3, 53), 0)  # by the field's number in proc(5)
        words |= {3: state, 4: ppid, 20: 1, 22: start} | {fields[name]: value for name, value in told.items()}
        (folder / "stat").write_text(f"{pid} ({comm}) {' '.join(map(str, words.values()))}\n")
        (folder / "io").write_text(
            f"rchar: {read}\nwchar: {written}\nsyscr: 0\nsyscw: 0\n"
            "read_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n"
        )
        (folder / "task" / str(pid) / "children").write_text(" ".join(map(str, children)))

    def end(self, pid):
        shutil.rmtree(self.folder / str(pid))

    def look(self, *pids, seconds=1.0):
        self.clock.time += seconds
        self.evidence = self.follower.look({"GPU-0": pids or (10,)})
        return {process.pid: process for process in self.evidence.processes}
