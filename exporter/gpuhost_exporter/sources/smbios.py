"""What the firmware says of itself in SMBIOS: whether it is a virtual machine's. Root's alone to read, or for who has
CAP_DAC_READ_SEARCH.

    /sys/firmware/dmi/tables/DMI      structures one after the other: type, length (1 byte each), handle (2), the rest
                                      of the length, then strings, each ended by a zero, ended by one more
    type 0, BIOS information          0x12, 0x13: characteristics extension bytes; bit 4 of the second: virtual machine

QEMU (where it makes type 0 itself) and EC2 set the bit. SeaBIOS and VirtualBox do not.
"""

from __future__ import annotations

from gpuhost_exporter.errors import Malformed, SourceError
from gpuhost_exporter.sources.files import Root, read_block

_BIOS, _END = 0, 127
_HEADER_BYTES = 4
_EXTENSION = 0x13
_VIRTUAL_MACHINE = 0x10
_PAGE = 4096  # what sysfs hands out at most at once
_MOST_PAGES = 32


def virtual_machine(root: Root) -> bool | None:
    """None where there is no such table, it may not be read, or it is too old to tell."""
    path = f"{root.sys}/firmware/dmi/tables/DMI"
    table = b""
    try:
        for page in range(_MOST_PAGES):
            block = read_block(path, page * _PAGE, _PAGE)
            table += block
            if len(block) < _PAGE:
                break
        return parse(table)
    except SourceError:
        return None


def parse(table: bytes) -> bool | None:
    """The bit; None where no BIOS structure has it. Raises Malformed for a structure that ends nowhere."""
    place = 0
    while place + _HEADER_BYTES <= len(table):
        kind, length = table[place], table[place + 1]
        if length < _HEADER_BYTES or place + length > len(table):
            raise Malformed(f"SMBIOS: a structure of type {kind} and {length} bytes at {place} of {len(table)}")
        if kind == _BIOS:
            return bool(table[place + _EXTENSION] & _VIRTUAL_MACHINE) if length > _EXTENSION else None
        strings = table.find(b"\0\0", place + length)
        if kind == _END or strings < 0:
            return None
        place = strings + 2
    return None
