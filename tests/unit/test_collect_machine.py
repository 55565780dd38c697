"""The machine as samples."""

from __future__ import annotations

from test_source_machine import CPUINFO, STAT
from trees import host_at, values

from gpuhost_exporter.collectors.machine import MachineCollector

FILES = {
    "sys/class/dmi/id/sys_vendor": "Supermicro\n",
    "sys/class/dmi/id/product_name": "SYS-821GE-TNHR\n",
    "proc/sys/kernel/osrelease": "6.8.0-60-generic\n",
    "proc/cpuinfo": CPUINFO,
    "proc/stat": STAT,
    "proc/meminfo": "MemTotal: 4 kB\n",
}
INFO = (
    "machine_info",
    "Supermicro",
    "SYS-821GE-TNHR",
    "",
    "6.8.0-60-generic",
    "Intel(R) Xeon(R) Platinum 8480C",
)


def test_a_machine_has_identity_boot_time_and_size(tmp_path):
    assert values(MachineCollector(host_at(tmp_path, FILES)).poll(0.0)) == {
        INFO: 1,
        ("boot_time_seconds",): 1722470400,
        ("machine_processors",): 2,
        ("machine_memory_bytes",): 4096,
    }


def test_garbage_in_stat_costs_what_comes_from_it(tmp_path):
    collector = MachineCollector(host_at(tmp_path, FILES | {"proc/stat": "\x00"}))
    assert values(collector.poll(0.0)) == {INFO: 1, ("machine_memory_bytes",): 4096}
    assert collector.errors == {"malformed": 1}


def test_an_absent_meminfo_costs_the_memory(tmp_path):
    collector = MachineCollector(host_at(tmp_path, {k: v for k, v in FILES.items() if k != "proc/meminfo"}))
    assert ("machine_memory_bytes",) not in values(collector.poll(0.0))
    assert collector.errors == {"absent": 1}


def test_what_cannot_change_without_a_boot_is_read_once(tmp_path):
    collector = MachineCollector(host_at(tmp_path, FILES))
    first = values(collector.poll(0.0))
    (tmp_path / "proc/cpuinfo").unlink()
    (tmp_path / "proc/stat").write_text(STAT + "cpu2 1 1 1\n")
    second = values(collector.poll(60.0))
    assert INFO in first.keys() & second.keys()
    assert (first["machine_processors",], second["machine_processors",]) == (2, 3)
