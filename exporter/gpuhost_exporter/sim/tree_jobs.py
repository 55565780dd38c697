"""The simulated job's processes and control groups: what /proc/PID and /sys/fs/cgroup say of them.

Each rank holds a GPU, or an instance of it, and has two processes that load data and one that writes checkpoints beside
the training. What the job reads, the loaders read; what it writes, the rank writes itself, or the writer does.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuhost_exporter.sim import mounts
from gpuhost_exporter.sim.hosts import Gpu, System
from gpuhost_exporter.sim.scenario import GpuLevels, HostLevels
from gpuhost_exporter.sim.timeline import Timeline

LOADERS = 2
_HZ = 100
_LAUNCHER = 4700
_FIRST_LOADER = 5000
_FIRST_WRITER = 6000
_JOB = 90017
_STEP = f"slurmstepd.scope/job_{_JOB}/step_0/user"
_DESCRIPTOR = "9"
_WORDS = {"D": "D (disk sleep)", "R": "R (running)", "S": "S (sleeping)"}


@dataclass(frozen=True, slots=True)
class _Task:
    """One process at a moment; integrals since the simulation began."""

    pid: int
    parent: int
    name: str
    state: str
    cpu_seconds: float
    read: float
    read_from_disk: float
    written: float
    dirtied: float
    waited_seconds: float = 0.0
    children: tuple[int, ...] = ()


def processes(timeline: Timeline, seconds: float) -> dict[int, dict[str, str]]:
    """The job's processes: pid -> file -> text."""
    return {
        task.pid: _files(timeline, gpu, task)
        for gpu in timeline.host.gpus
        for pid in timeline.pids(gpu.index, seconds)
        for task in _rank(timeline, gpu, pid, seconds)
    }


def open_files(timeline: Timeline) -> tuple[str, str]:
    """(file descriptor, file) that each process of the job writes its checkpoints to."""
    return _DESCRIPTOR, f"{mounts.checkpoint_mount(timeline.host)[1].rstrip('/')}/checkpoints/step.pt"


def groups(timeline: Timeline, seconds: float) -> dict[str, dict[str, str]]:
    """Control groups of the job: path below /sys/fs/cgroup -> file -> text."""
    if not timeline.host.system.unified_cgroups:
        return {}
    return {
        f"system.slice/{_STEP}/task_{gpu.index}": _group(timeline, gpu, seconds)
        for gpu in timeline.host.gpus
        if timeline.pids(gpu.index, seconds)
    }


def _rank(timeline: Timeline, gpu: Gpu, pid: int, seconds: float) -> list[_Task]:
    host, totals = timeline.host_levels(seconds)
    levels = timeline.gpu_levels(gpu.index, seconds)[0]
    share = 1 / sum(len(each.pids) for each in timeline.host.gpus)
    threads = timeline.host.system.threads * share
    loads, saves = _waits_for_data(host), host.background_write > 0
    waits = gpu.index < host.blocked
    loaders = tuple(_FIRST_LOADER + LOADERS * (pid - 4711) + number for number in range(LOADERS))
    writer = _FIRST_WRITER + pid - 4711
    in_background = totals.background_write * share
    tasks = [
        _Task(
            pid,
            _LAUNCHER,
            "python3",
            "D" if levels.blocked or (waits and not loads and not saves) else _pace(levels, host),
            (totals.cpu - totals.loader_cpu) * threads,
            0.0,
            0.0,
            totals.job_write * share - in_background,
            totals.dirtied * share - in_background,
            totals.io_full,
            (*loaders, writer),
        )
    ]
    for number, loader in enumerate(loaders):
        part = share / LOADERS
        state = "D" if waits and loads and number == 0 else "R" if host.loader_cpu else "S"
        cpu = totals.loader_cpu * threads / LOADERS
        tasks.append(
            _Task(loader, pid, "pt_data_worker", state, cpu, totals.job_read * part, totals.disk_read * part, 0.0, 0.0)
        )
    tasks.append(
        _Task(
            writer,
            pid,
            "python3",
            ("D" if waits else "R") if saves else "S",
            in_background / 2e9,
            0.0,
            0.0,
            in_background,
            in_background,
        )
    )
    return tasks


def _waits_for_data(host: HostLevels) -> bool:
    return host.job_read > host.job_write


def _pace(gpu: GpuLevels, host: HostLevels) -> str:
    """A rank whose GPU has nothing to do waits for its loaders, or copies and writes itself."""
    return "S" if gpu.graphics < 0.1 and _waits_for_data(host) else "R"


def _files(timeline: Timeline, gpu: Gpu, task: _Task) -> dict[str, str]:
    user = int(_HZ * task.cpu_seconds)
    resident = 41_230_112 // (4 if gpu.mig else 1)
    started = int(_HZ * timeline.control.started_at)
    read, written = int(task.read), int(task.written)
    after = f"0 -1 4194304 9120331 0 412 0 {user} 0 0 0 20 0 187 0 {started}"
    signals = "18446744073709551615 1 1 0 0 0 0 0 16781312 16386 0 0 0 17 3 0 0"
    delay = int(_HZ * task.waited_seconds)
    files = {
        "comm": task.name,
        "stat": f"{task.pid} ({task.name}) {task.state} {task.parent} {_LAUNCHER} {_LAUNCHER} {after} "
        f"184467440737 {resident // 4} {signals} {delay} 0 0 0 0 0 0 0 0 0 0",
        "status": f"Name:\t{task.name}\nUmask:\t0022\nState:\t{_WORDS[task.state]}\nTgid:\t{task.pid}\nNgid:\t0\n"
        f"Pid:\t{task.pid}\nPPid:\t{task.parent}\nTracerPid:\t0\nUid:\t1001\t1001\t1001\t1001\n"
        f"Gid:\t1001\t1001\t1001\t1001\nVmRSS:\t{resident} kB\nThreads:\t187",
        "cgroup": _cgroup(timeline.host.system, gpu.index),
        "environ": _environment(timeline, gpu.index),
        "io": f"rchar: {read}\nwchar: {written}\nsyscr: {read >> 20}\nsyscw: {written >> 20}\n"
        f"read_bytes: {int(task.read_from_disk)}\nwrite_bytes: {int(task.dirtied)}\ncancelled_write_bytes: 0",
    }
    if task.written:
        # Rounded: it is read only of who writes much, and a file that stays as it is costs nothing.
        position = int(task.written) >> 28 << 28
        mount = mounts.checkpoint_mount(timeline.host)[0]
        files[f"fdinfo/{_DESCRIPTOR}"] = f"pos:\t{position}\nflags:\t0100001\nmnt_id:\t{mount}"
        files["mountinfo"] = mounts.mountinfo(timeline.host)
    if task.children:
        files[f"task/{task.pid}/children"] = " ".join(map(str, task.children))
    return files


def _environment(timeline: Timeline, rank: int) -> str:
    words = {
        "USER": "ada",
        "SLURM_JOB_ID": _JOB,
        "SLURM_JOB_NAME": "llm-70b",
        "SLURM_JOB_USER": "ada",
        "SLURM_JOB_ACCOUNT": "research",
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": len(timeline.host.gpus),
        "MASTER_ADDR": f"sim-{timeline.host.name}",
        "MASTER_PORT": 29500,
    }
    return "\0".join(f"{key}={value}" for key, value in words.items())


def _cgroup(system: System, rank: int) -> str:
    if system.unified_cgroups:
        return f"0::/system.slice/{_STEP}/task_{rank}"
    step = f"/slurm/uid_1001/job_{_JOB}/step_0"
    return f"11:memory:{step}/task_{rank}\n6:cpuset:{step}\n4:devices:{step}/task_{rank}\n1:name=systemd:/"


def _group(timeline: Timeline, gpu: Gpu, seconds: float) -> dict[str, str]:
    host, totals = timeline.host, timeline.host_levels(seconds)[1]
    tasks = [task for pid in timeline.pids(gpu.index, seconds) for task in _rank(timeline, gpu, pid, seconds)]
    share = 1 / len(host.gpus)
    drives = [drive for drive in host.drives if drive.name in host.data_drives]
    part = share / max(1, len(drives))
    read, written = int(totals.disk_read * part), int(totals.disk_write * part)
    rows = [
        f"{drive.number[0]}:{drive.number[1]} rbytes={read} wbytes={written} rios={read >> 17} wios={written >> 17} "
        "dbytes=0 dios=0"
        for drive in drives
    ]
    stalls = "\n".join(
        f"{kind} avg10=0.00 avg60=0.00 avg300=0.00 total={int(1e6 * total)}"
        for kind, total in (("some", totals.io_some), ("full", totals.io_full))
    )
    dirty = int(max(0.0, totals.dirtied - totals.disk_write) * share)
    return {
        "cgroup.procs": "\n".join(str(task.pid) for task in tasks),
        "io.stat": "\n".join(rows),
        "io.pressure": stalls,
        "memory.stat": f"anon 412316860416\nfile {41_230_112 << 10}\nfile_dirty {dirty}\nfile_writeback 0",
        "cpu.stat": f"usage_usec {int(1e6 * sum(task.cpu_seconds for task in tasks))}",
    }
