"""The machine's identity and size."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import plant

from gpuhost_exporter.errors import Absent, Malformed
from gpuhost_exporter.sources import machine

STAT = "cpu  1 2 3\ncpu0 1 1 1\ncpu1 0 1 2\nintr 9 9\nctxt 4\nbtime 1722470400\nprocesses 3\n"
CPUINFO = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8480C\n\nprocessor\t: 1\nmodel name\t: other\n"


def test_a_machine_is_identified_by_its_firmware_and_kernel(tmp_path):
    root = plant(
        tmp_path,
        {
            "sys/class/dmi/id/sys_vendor": "NVIDIA\n",
            "sys/class/dmi/id/product_name": "DGXH100\n",
            "sys/class/dmi/id/bios_version": "1.06.07\n",
            "proc/sys/kernel/osrelease": "6.8.0-60-generic\n",
            "proc/cpuinfo": CPUINFO,
        },
    )
    assert machine.identity(root) == machine.Identity(
        "NVIDIA", "DGXH100", "1.06.07", "6.8.0-60-generic", "Intel(R) Xeon(R) Platinum 8480C"
    )


def test_what_the_machine_does_not_tell_is_none(tmp_path):
    assert machine.identity(plant(tmp_path, {})) == machine.Identity(None, None, None, None, None)


def test_the_processor_is_found_in_a_cpuinfo_of_many_megabytes(tmp_path):
    root = plant(tmp_path, {"proc/cpuinfo": CPUINFO + "flags\t\t: fpu vme de\n" * 120_000})
    assert machine.identity(root).processor == "Intel(R) Xeon(R) Platinum 8480C"


def test_an_arm_cpuinfo_names_no_model():
    assert machine.parse_processor("processor\t: 0\nBogoMIPS\t: 2000.00\nCPU implementer\t: 0x41\n") is None


def test_boot_time_and_processors_come_from_stat(tmp_path):
    assert machine.running(plant(tmp_path, {"proc/stat": STAT})) == machine.Running(1722470400, 2)


def test_memory_is_in_bytes(tmp_path):
    root = plant(tmp_path, {"proc/meminfo": "MemTotal:       2113384752 kB\nMemFree: 5 kB\n"})
    assert machine.memory_bytes(root) == 2113384752 * 1024


@pytest.mark.parametrize("text", ["", STAT[:40], "btime 5\n", "cpu0 1\nbtime soon\n"])
def test_a_stat_without_processors_or_boot_time_is_malformed(text):
    with pytest.raises(Malformed, match="expected lines"):
        machine.parse_stat(text)


@pytest.mark.parametrize("text", ["", "MemFree: 5 kB", "MemTotal: lots kB", "MemTotal:  211338475"])
def test_a_meminfo_without_total_is_malformed(text):
    with pytest.raises(Malformed, match="expected a line"):
        machine.parse_meminfo(text)


@pytest.mark.parametrize("read", [machine.running, machine.memory_bytes])
def test_without_proc_it_is_absent(tmp_path, read):
    with pytest.raises(Absent):
        read(plant(tmp_path, {}))


@given(st.text())
def test_any_text_parses_or_is_malformed(text):
    machine.parse_processor(text)
    for parse in (machine.parse_stat, machine.parse_meminfo):
        with contextlib.suppress(Malformed):
            parse(text)
