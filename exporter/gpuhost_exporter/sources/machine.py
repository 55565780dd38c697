"""The machine: who made it, what it runs, since when.

/sys/class/dmi/id/sys_vendor, product_name, bios_version     (serial numbers are root's, and not read)
/proc/sys/kernel/osrelease      6.8.0-60-generic
/proc/cpuinfo                   model name : Intel(R) Xeon(R) Platinum 8480C     (not on ARM)
/proc/stat                      cpu0 …, one line a processor that is online; btime 1722470400
/proc/meminfo                   MemTotal:       2113384752 kB
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpuhost_exporter.errors import Malformed, SourceError
from gpuhost_exporter.sources.files import Root, optional_text, read_start, read_text

_BOOT_TIME = re.compile(r"^btime ([0-9]{1,12})$", re.MULTILINE)
_PROCESSOR = re.compile(r"^cpu[0-9]+ ", re.MULTILINE)
_MEMORY = re.compile(r"^MemTotal:\s+([0-9]{1,18}) kB$", re.MULTILINE)
_MODEL = re.compile(r"^model name\s*:\s*(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Identity:
    """What cannot change without a boot."""

    vendor: str | None
    product: str | None
    bios: str | None
    kernel: str | None
    processor: str | None


@dataclass(frozen=True, slots=True)
class Running:
    """`boot_time` is seconds since the epoch; processors are logical ones that are online."""

    boot_time: int
    processors: int


def identity(root: Root) -> Identity:
    dmi = f"{root.sys}/class/dmi/id"
    try:
        processor = parse_processor(read_start(f"{root.proc}/cpuinfo"))
    except SourceError:
        processor = None
    return Identity(
        optional_text(f"{dmi}/sys_vendor"),
        optional_text(f"{dmi}/product_name"),
        optional_text(f"{dmi}/bios_version"),
        optional_text(f"{root.proc}/sys/kernel/osrelease"),
        processor,
    )


def running(root: Root) -> Running:
    return parse_stat(read_text(f"{root.proc}/stat"))


def memory_bytes(root: Root) -> int:
    """Memory that the kernel manages."""
    return parse_meminfo(read_text(f"{root.proc}/meminfo"))


def parse_stat(text: str) -> Running:
    boot_time = _BOOT_TIME.search(text)
    processors = len(_PROCESSOR.findall(text))
    if boot_time is None or not processors:
        raise Malformed(f"/proc/stat: expected lines 'cpuN …' and 'btime SECONDS', got {text[:40]!r}")
    return Running(int(boot_time[1]), processors)


def parse_meminfo(text: str) -> int:
    match = _MEMORY.search(text)
    if match is None:
        raise Malformed(f"/proc/meminfo: expected a line 'MemTotal: NUMBER kB', got {text[:40]!r}")
    return int(match[1]) * 1024


def parse_processor(text: str) -> str | None:
    """The first processor's model; None where the architecture does not name it."""
    match = _MODEL.search(text)
    return match[1].strip() if match else None
