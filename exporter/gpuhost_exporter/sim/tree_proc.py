"""Texts of a simulated host's /proc, in the kernel's own form."""

from __future__ import annotations

from gpuhost_exporter.sim.hosts import HostSpec, System
from gpuhost_exporter.sim.timeline import Timeline

_HZ = 100
_PAGE = 4096
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
