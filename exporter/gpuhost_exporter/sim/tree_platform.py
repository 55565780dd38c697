"""What a simulated host tells of itself: placement of its devices, processors, memory, and the fabric manager."""

from __future__ import annotations

import struct

from gpuhost_exporter.sim.hosts import HostSpec, System
from gpuhost_exporter.sim.timeline import Timeline
from gpuhost_exporter.sim.tree_files import Files

_FABRIC_MANAGER = 1803
_FABRIC_NOT_STARTED = 1  # as NVML numbers it
_WAKES = 5  # a second, of the thread that measures how long it waits for a CPU
_WAIT = 8e-6
_SLICE = 0.01  # what a hypervisor takes at a time
_IDLE = {
    "GenuineIntel": {"POLL": 0, "C1": 1, "C1E": 2, "C6": 290},
    "AuthenticAMD": {"POLL": 0, "C1": 1, "C2": 18},
}


def write_fixed(files: Files, host: HostSpec) -> None:
    """What never changes. A virtual machine is shown next to nothing of it."""
    system = host.system
    if host.driver is not None and host.switches:
        line = f"[Nov 02 2024 08:11:52] [INFO] [tid {_FABRIC_MANAGER}] Fabric Manager version {host.driver.version}"
        files.put("var/log/fabricmanager.log", f"{line} is running with the following configuration options")
    clocks = "kvm-clock tsc acpi_pm" if system.hypervisor else "tsc hpet acpi_pm"
    files.put("sys/devices/system/clocksource/clocksource0/available_clocksource", clocks)
    if system.hypervisor:
        return
    files.put("sys/class/iommu/dmar0/uevent", "")
    for port in dict.fromkeys(bdf for device in host.devices for bdf in device.path[2::2]):
        files.put_block(f"sys/bus/pci/devices/{port}/config", _configuration_space())
    if host.driver is not None and host.driver.open_module and host.ports:
        files.put("sys/module/nvidia_peermem/refcnt", "0")
    _processors(files, system)
    _memory(files, system)


def write(files: Files, timeline: Timeline, seconds: float) -> None:
    times = int(_WAKES * seconds)
    wait = _WAIT + timeline.host.system.steal * _SLICE
    files.put("proc/thread-self/schedstat", f"{times * 41_000} {int(1e9 * wait * times)} {times}")


def services(timeline: Timeline, seconds: float) -> dict[int, dict[str, str]]:
    """Processes that are not the job's: pid -> file -> text."""
    found = {2: {"comm": "kthreadd"}}
    if _fabric_manager_runs(timeline, seconds):
        found[_FABRIC_MANAGER] = {"comm": "nv-fabricmanage"}
    return found


def groups(timeline: Timeline, seconds: float) -> dict[str, dict[str, str]]:
    """Control groups of services: path below /sys/fs/cgroup -> file -> text."""
    if not _fabric_manager_runs(timeline, seconds):
        return {}
    return {"system.slice/nvidia-fabricmanager.service": {"cgroup.procs": str(_FABRIC_MANAGER)}}


def _fabric_manager_runs(timeline: Timeline, seconds: float) -> bool:
    fault = timeline.active("fabric", seconds)
    return bool(timeline.host.switches) and (fault is None or fault.code != _FABRIC_NOT_STARTED)


def _configuration_space() -> bytes:
    """Of a switch's port whose firmware has switched ACS off."""
    space = bytearray(4096)
    struct.pack_into("<I", space, 0x100, 0x0001 | 2 << 16 | 0x150 << 20)  # error reporting, then
    struct.pack_into("<IHH", space, 0x150, 0x000D | 1 << 16, 0x005F, 0x0000)
    return bytes(space)


def _processors(files: Files, system: System) -> None:
    for number in range(system.threads):
        files.put(f"sys/devices/system/cpu/cpufreq/policy{number}/scaling_governor", system.governor)
    for number, (name, latency) in enumerate(_IDLE[system.cpu_vendor].items()):
        files.put_all(
            f"sys/devices/system/cpu/cpu0/cpuidle/state{number}",
            {"name": name, "latency": str(latency), "disable": "0"},
        )


def _memory(files: Files, system: System) -> None:
    for number in range(4 * system.sockets if system.cpu_vendor == "GenuineIntel" else system.sockets):
        controller = f"sys/devices/system/edac/mc/mc{number}"
        corrected = str(system.corrected_errors if number == 0 else 0)
        files.put_all(controller, {"mc_name": "Socket", "ce_count": corrected, "ue_count": "0"})
        files.put_all(
            f"{controller}/dimm0",
            {"dimm_label": f"CPU_SrcID#0_MC#{number}_Chan#0_DIMM#0", "dimm_ce_count": corrected, "dimm_ue_count": "0"},
        )
