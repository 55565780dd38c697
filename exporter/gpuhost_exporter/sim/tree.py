"""The simulated host's moving /proc, /sys and /dev, written into a folder.

tree = Tree("/run/gpuhost/simulation.json", "/run/gpuhost/root", SystemClock())
tree.write()       # root/proc/diskstats, root/sys/block/..., root/dev/kmsg as of now
"""

from __future__ import annotations

import os
import time

from gpuhost_exporter.clock import Clock
from gpuhost_exporter.sim import control, mounts, tree_block, tree_jobs, tree_platform, tree_ports, tree_proc, tree_sys
from gpuhost_exporter.sim.timeline import Event, Timeline
from gpuhost_exporter.sim.tree_files import Files
from gpuhost_exporter.sources import udev

_BEFORE_THE_SECOND = 0.25  # collectors poll on the second: what they find is fresh and at rest


class Tree:
    def __init__(self, control_path: str, folder: str, clock: Clock) -> None:
        self._path = control_path
        self._clock = clock
        self._files = Files(folder)
        self._control = control.load(control_path)
        self._timeline = Timeline(self._control)
        self._records = 0
        self._pids: set[int] = set()
        self._groups: set[str] = set()
        self._fixed = False
        self._pulled = ""

    def write(self) -> tuple[udev.Event, ...]:
        """Bring the tree to the present; what the kernel would announce of it. ConfigError when the control file is
        gone or broken.
        """
        current = control.load(self._path)
        if current != self._control:
            self._control = current
            self._timeline = Timeline(current)
        timeline, files = self._timeline, self._files
        files.at = self._clock.now()
        seconds = current.elapsed(files.at)
        if not self._fixed:
            files.put_all("proc", tree_proc.fixed(timeline.host, current.boot_id))
            files.put("proc/self/mountinfo", mounts.mountinfo(timeline.host))
            tree_sys.write_fixed(files, timeline.host)
            tree_ports.write_fixed(files, timeline.host)
            tree_platform.write_fixed(files, timeline.host)
            if timeline.host.system.unified_cgroups:
                files.put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids")
            self._resume()
            self._fixed = True
        states = {array.name: tree_block.array_state(timeline, array, seconds) for array in timeline.host.arrays}
        files.put_all(
            "proc",
            {
                "diskstats": tree_block.diskstats(timeline, seconds),
                "mdstat": tree_block.mdstat(timeline.host, states),
                "stat": tree_proc.stat(timeline, seconds),
                "uptime": tree_proc.uptime(timeline, seconds),
                "loadavg": tree_proc.loadavg(timeline, seconds),
                "meminfo": tree_proc.meminfo(timeline, seconds),
                "vmstat": tree_proc.vmstat(timeline, seconds),
                "self/mountstats": mounts.mountstats(timeline, seconds),
            },
        )
        files.put("rooms", mounts.rooms(timeline, seconds))
        if timeline.host.system.pressure:
            files.put_all("proc/pressure", tree_proc.pressure(timeline, seconds))
        tree_sys.write_drives(files, timeline, seconds)
        tree_ports.write(files, timeline, seconds)
        tree_platform.write(files, timeline, seconds)
        tree_sys.write_links(files, timeline, seconds)
        self._write_processes(seconds)
        self._write_kernel_log(seconds)
        return self._announce(seconds)

    def _announce(self, seconds: float) -> tuple[udev.Event, ...]:
        before, self._pulled = self._pulled, tree_block.pulled(self._timeline, seconds)
        moves = [("remove", self._pulled), ("add", before)] if self._pulled != before else []
        drives = {drive.name: drive for drive in self._timeline.host.drives}
        return tuple(
            udev.Event(action, subsystem, device)
            for action, name in moves
            if name
            for subsystem, device in (
                ("block", name),
                ("nvme", drives[name].controller),
                ("pci", drives[name].pci.bdf),
            )
        )

    def _resume(self) -> None:
        """Go on with a folder that an earlier simulator process has left."""
        self._pids = {int(name) for name in os.listdir(self._files.path("proc")) if name.isdecimal()}
        os.makedirs(self._files.path("dev"), exist_ok=True)
        with open(self._files.path("dev/kmsg"), "a+", encoding="utf-8") as log:
            log.seek(0)
            self._records = sum(1 for _ in log)

    def _write_processes(self, seconds: float) -> None:
        services = tree_platform.services(self._timeline, seconds)
        processes = services | tree_jobs.processes(self._timeline, seconds)
        descriptor, target = tree_jobs.open_files(self._timeline)
        for pid in self._pids - set(processes):
            self._files.remove(f"proc/{pid}")
        for pid, texts in processes.items():
            self._files.put_all(f"proc/{pid}", texts)
            if f"fdinfo/{descriptor}" in texts:
                self._files.show_link(f"proc/{pid}/fd/{descriptor}", target)
        self._pids = set(processes)
        groups = tree_platform.groups(self._timeline, seconds) | tree_jobs.groups(self._timeline, seconds)
        for group in self._groups - set(groups):
            self._files.remove(f"sys/fs/cgroup/{group}")
        for group, texts in groups.items():
            self._files.put_all(f"sys/fs/cgroup/{group}", texts)
        self._groups = set(groups)

    def _write_kernel_log(self, seconds: float) -> None:
        """Append what is new: dev/kmsg is a file here, one record a line, as the device hands them out."""
        records = self._boot_records() + [self._record(event) for event in self._timeline.events(seconds)]
        new = records[self._records :]
        if not new:
            return
        lines = (
            f"{priority},{number},{int(at * 1e6)},-;{text}\n"
            for number, (priority, at, text) in enumerate(new, self._records)
        )
        with open(self._files.path("dev/kmsg"), "a", encoding="utf-8") as log:
            log.write("".join(lines))
        self._records = len(records)

    def _boot_records(self) -> list[tuple[int, float, str]]:
        host, up = self._timeline.host, self._control.started_at
        texts = [f"Linux version {host.system.kernel}", f"Command line: {host.system.cmdline}"]
        texts += [f"nvme {drive.controller}: pci function {drive.pci.bdf}" for drive in host.drives if drive.controller]
        if host.driver is not None:
            texts.append(f"NVRM: loading NVIDIA UNIX Kernel Module for x86_64  {host.driver.version}")
        # Within the first seconds, however short the uptime is.
        return [(6, min(5.0, 0.5 * up) * (number + 1) / len(texts), text) for number, text in enumerate(texts)]

    def _record(self, event: Event) -> tuple[int, float, str]:
        host, fault = self._timeline.host, event.fault
        at = self._control.started_at + event.at
        if fault.kind == "xid":
            place = host.gpus[fault.gpu].pci.bdf.partition(".")[0]
            return 3, at, f"NVRM: Xid (PCI:{place}): {fault.code}, {fault.text}"
        if fault.kind == "sxid":
            return 3, at, f"nvidia-nvswitch0: SXid (PCI:{host.switches[0].bdf}): {fault.code}, {fault.text}"
        member = f"{host.failing_drive}p2"
        if fault.kind == "drive_failed":
            return 2, at, f"md/raid1:{host.system_array}: Disk failure on {member}, disabling device."
        return 6, at, f"md: recovery of RAID array {host.system_array}"


def run(control_path: str, folder: str, clock: Clock, interval: float = 1.0) -> None:
    """Keep the tree moving, for a process of its own. Ends with ConfigError when the control file goes."""
    tree = Tree(control_path, folder, clock)
    while True:
        tree.write()
        phase = (clock.wall() + _BEFORE_THE_SECOND) % interval
        time.sleep(interval - phase)
