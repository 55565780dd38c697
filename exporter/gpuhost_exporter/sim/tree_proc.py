"""Texts of a simulated host's /proc, in the kernel's own form."""

from __future__ import annotations

from gpuhost_exporter.sim.hosts import Gpu, HostSpec, System
from gpuhost_exporter.sim.timeline import Timeline

_HZ = 100
_PAGE = 4096
_LAUNCHER = 4700
_FLAGS = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat sse sse2 ht syscall nx lm avx avx2"


def stat(timeline: Timeline, seconds: float) -> str:
    """The host's CPU time: every thread has done the same."""
    control, system = timeline.control, timeline.host.system
    levels, totals = timeline.host_levels(seconds)
    stolen = system.steal * seconds
    used = totals.cpu + totals.iowait + stolen
    idle = 0.97 * control.started_at + seconds - used
    each = [
        int(_HZ * value)
        for value in (0.88 * totals.cpu, 0.0, 0.11 * totals.cpu, idle, totals.iowait, 0.0, 0.01 * totals.cpu, stolen)
    ]
    per_thread = " ".join(map(str, [*each, 0, 0]))
    total = " ".join(str(system.threads * value) for value in [*each, 0, 0])
    lines = [f"cpu  {total}"]
    lines += [f"cpu{number} {per_thread}" for number in range(system.threads)]
    lines += [
        f"ctxt {int(9.1e8 + 2.2e5 * seconds)}",
        f"btime {int(control.booted_wall)}",
        f"processes {int(812_000 + 3 * seconds)}",
        f"procs_running {1 + round(levels.cpu * system.threads)}",
        f"procs_blocked {round(levels.blocked)}",
    ]
    return "\n".join(lines)


def uptime(timeline: Timeline, seconds: float) -> str:
    up = timeline.control.started_at + seconds
    return f"{up:.2f} {0.93 * up * timeline.host.system.threads:.2f}"


def loadavg(timeline: Timeline, seconds: float) -> str:
    levels = timeline.host_levels(seconds)[0]
    running = levels.cpu * timeline.host.system.threads
    load = f"{running + levels.blocked:.2f}"
    return f"{load} {load} {load} {1 + round(running)}/{2048 + len(timeline.host.gpus) * 40} 91724"


def meminfo(timeline: Timeline, seconds: float) -> str:
    total = timeline.host.system.memory_kib
    levels = timeline.host_levels(seconds)[0]
    dirty = int(min(levels.dirty / 1024, 0.2 * total))
    cached = int(0.31 * total) + dirty
    free = int(0.52 * total) - dirty
    rows = {
        "MemTotal": total,
        "MemFree": free,
        "MemAvailable": free + int(0.9 * cached),
        "Buffers": 412_380,
        "Cached": cached,
        "SwapCached": 0,
        "Active": int(0.12 * total),
        "Inactive": int(0.28 * total),
        "SwapTotal": 0,
        "SwapFree": 0,
        "Dirty": dirty,
        "Writeback": dirty // 40,
        "AnonPages": int(0.09 * total),
        "Mapped": 3_120_448,
        "Shmem": 2_845_112,
        "Slab": 5_412_776,
        "PageTables": 402_112,
        "HugePages_Total": 0,
    }
    return "\n".join(
        f"{name + ':':<16}{value:>8}" + ("" if name.startswith("HugePages") else " kB") for name, value in rows.items()
    )


def vmstat(timeline: Timeline, seconds: float) -> str:
    system = timeline.host.system
    levels, totals = timeline.host_levels(seconds)
    pages = system.memory_kib * 1024 // _PAGE
    dirty = int(levels.dirty / _PAGE)
    rows = {
        "nr_free_pages": int(0.52 * pages) - dirty,
        "nr_dirty": dirty,
        "nr_writeback": dirty // 40,
        "nr_dirtied": int(6.2e9 + totals.dirtied / _PAGE),
        "nr_written": int(5.9e9 + totals.disk_write / _PAGE),
        "nr_dirty_threshold": int(0.17 * pages),
        "nr_dirty_background_threshold": int(0.085 * pages),
        "pgpgin": int(5.8e10 + totals.disk_read / 1024),
        "pgpgout": int(2.2e10 + totals.disk_write / 1024),
        "pswpin": 0,
        "pswpout": 0,
        "pgfault": int(3.3e9 + 2.1e4 * seconds),
        "pgmajfault": 81_204,
        "oom_kill": 0,
    }
    return "\n".join(f"{name} {value}" for name, value in rows.items())


def pressure(timeline: Timeline, seconds: float) -> dict[str, str]:
    """cpu, io and memory: some avg10=0.40 avg60=0.40 avg300=0.12 total=8123456"""
    pairs = {
        "cpu": ("cpu_some", ""),
        "io": ("io_some", "io_full"),
        "memory": ("memory_some", "memory_full"),
    }
    return {
        name: "\n".join(
            (_pressure_line("some", timeline, some, seconds), _pressure_line("full", timeline, full, seconds))
        )
        for name, (some, full) in pairs.items()
    }


def _pressure_line(kind: str, timeline: Timeline, level: str, seconds: float) -> str:
    def stalled(until: float) -> float:
        return getattr(timeline.host_levels(max(0.0, until))[1], level) if level else 0.0

    now = stalled(seconds)
    shares = (f"avg{window}={100 * (now - stalled(seconds - window)) / window:.2f}" for window in (10, 60, 300))
    before = 4.2e6 if level else 0.0
    return f"{kind} {' '.join(shares)} total={int(before + 1e6 * now)}"


def cpuinfo(system: System) -> str:
    """One processor of each socket; a real file has them all."""
    per_socket = system.threads // system.sockets
    flags = f"{_FLAGS}{' hypervisor' if system.hypervisor else ''}"
    blocks = (
        f"processor\t: {socket}\nvendor_id\t: {system.cpu_vendor}\nmodel name\t: {system.cpu_model}\n"
        f"physical id\t: {socket}\nsiblings\t: {per_socket}\ncpu cores\t: {system.cores // system.sockets}\n"
        f"flags\t\t: {flags}"
        for socket in range(system.sockets)
    )
    return "\n\n".join(blocks) + "\n"


def fixed(host: HostSpec, boot_id: str) -> dict[str, str]:
    """What never changes, by path below /proc."""
    system = host.system
    files = {
        "cpuinfo": cpuinfo(system),
        "cmdline": system.cmdline,
        "version": f"Linux version {system.kernel} (builder@{system.distribution.lower()}) (gcc) #1 SMP",
        "sys/kernel/osrelease": system.kernel,
        "sys/kernel/ostype": "Linux",
        "sys/kernel/hostname": f"sim-{host.name}",
        "sys/kernel/random/boot_id": boot_id,
    }
    if host.driver is not None:
        module = "UNIX Open Kernel Module for x86_64" if host.driver.open_module else "UNIX x86_64 Kernel Module"
        files |= {
            "driver/nvidia/version": f"NVRM version: NVIDIA {module}  {host.driver.version}  Release Build\n"
            "GCC version:  gcc version 12.3.0",
            "driver/nvidia/params": "ResmanDebugLevel: 4294967295\nEnableMSI: 1\nRmProfilingAdminOnly: 1",
        }
    for gpu in host.gpus:
        assert host.model is not None
        files[f"driver/nvidia/gpus/{gpu.pci.bdf}/information"] = (
            f"Model: \t\t {host.model.name}\nIRQ:   \t\t {180 + gpu.index}\nGPU UUID: \t {gpu.uuid}\n"
            f"Video BIOS: \t {host.model.vbios}\nBus Type: \t PCIe\nDMA Size: \t 52 bits\n"
            f"Bus Location: \t {gpu.pci.bdf}\nDevice Minor: \t {gpu.index}"
        )
    return files


def processes(timeline: Timeline, seconds: float) -> dict[int, dict[str, str]]:
    """The job's processes: pid -> file -> text."""
    return {
        pid: _process(timeline, gpu, pid, seconds)
        for gpu in timeline.host.gpus
        if timeline.gpu_levels(gpu.index, seconds)[0].processes
        for pid in gpu.pids
    }


def _process(timeline: Timeline, gpu: Gpu, pid: int, seconds: float) -> dict[str, str]:
    host = timeline.host
    levels, totals = timeline.host_levels(seconds)
    share = 1 / sum(len(each.pids) for each in host.gpus)
    state = "D" if gpu.index < levels.blocked else "R"
    word = {"D": "D (disk sleep)", "R": "R (running)"}[state]
    user = int(_HZ * (totals.cpu * host.system.threads * share))
    resident = 41_230_112 // (4 if gpu.mig else 1)
    started = int(_HZ * timeline.control.started_at)
    read, written = int(totals.job_read * share), int(totals.job_write * share)
    after = f"0 -1 4194304 9120331 0 412 0 {user} {user // 9} 0 0 20 0 187 0 {started}"
    signals = "18446744073709551615 1 1 0 0 0 0 0 16781312 16386 0 0 0 17 3 0 0"
    delay = int(_HZ * totals.io_full)
    return {
        "comm": "python3",
        "stat": f"{pid} (python3) {state} {_LAUNCHER} {_LAUNCHER} {_LAUNCHER} {after} "
        f"184467440737 {resident // 4} {signals} {delay} 0 0 0 0 0 0 0 0 0 0",
        "status": f"Name:\tpython3\nUmask:\t0022\nState:\t{word}\nTgid:\t{pid}\nNgid:\t0\nPid:\t{pid}\n"
        f"PPid:\t{_LAUNCHER}\nTracerPid:\t0\nUid:\t1001\t1001\t1001\t1001\nGid:\t1001\t1001\t1001\t1001\n"
        f"VmRSS:\t{resident} kB\nThreads:\t187",
        "cgroup": _cgroup(host.system, gpu.index),
        "io": f"rchar: {read}\nwchar: {written}\nsyscr: {read >> 20}\nsyscw: {written >> 20}\n"
        f"read_bytes: {int(totals.disk_read * share)}\nwrite_bytes: {int(totals.dirtied * share)}\n"
        "cancelled_write_bytes: 0",
    }


def _cgroup(system: System, rank: int) -> str:
    if system.unified_cgroups:
        return f"0::/system.slice/slurmstepd.scope/job_90017/step_0/user/task_{rank}"
    step = "/slurm/uid_1001/job_90017/step_0"
    return f"11:memory:{step}/task_{rank}\n6:cpuset:{step}\n4:devices:{step}/task_{rank}\n1:name=systemd:/"
