"""Whether SMBIOS calls the machine virtual."""

from __future__ import annotations

import contextlib
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import fail_opening

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources import smbios
from gpuhost_exporter.sources.files import Root


def structure(kind, body, *strings):
    texts = b"".join(text.encode() + b"\0" for text in strings) or b"\0"
    return struct.pack("<BBH", kind, len(body) + 4, kind) + body + texts + b"\0"


def bios(*extension, vendor="American Megatrends International, LLC."):
    """Type 0 as SMBIOS 2.4 and later have it; `extension`: its characteristics extension bytes."""
    body = bytes([1, 2, 0x00, 0xF0, 3, 0xFF]) + (0x1B8B9880).to_bytes(8, "little") + bytes(extension)
    return structure(0, body, vendor, "2.1", "03/14/2025")


SYSTEM = structure(1, bytes(23), "Supermicro", "SYS-821GE-TNHR")
PROCESSORS = b"".join(structure(4, bytes(44), f"CPU{number}", "x" * 60) for number in range(64))
END = structure(127, b"")


@pytest.mark.parametrize(
    ("table", "virtual"),
    [
        pytest.param(bios(0x03, 0x0D) + SYSTEM + END, False, id="metal"),
        pytest.param(bios(0x00, 0x1C, vendor="EDK II") + SYSTEM + END, True, id="a guest"),
        pytest.param(SYSTEM + PROCESSORS + bios(0x00, 0x14) + END, True, id="behind more than a page"),
        pytest.param(bios(0x03) + SYSTEM + END, None, id="before SMBIOS 2.4"),
        pytest.param(SYSTEM + END, None, id="no BIOS structure"),
        pytest.param(SYSTEM + END + bios(0x00, 0x10), None, id="behind the end"),
        pytest.param(b"", None, id="empty"),
        pytest.param(bios(0x00, 0x10)[:12], None, id="cut off"),
    ],
)
def test_the_second_extension_byte_has_the_bit(tmp_path, table, virtual):
    folder = tmp_path / "sys/firmware/dmi/tables"
    folder.mkdir(parents=True)
    (folder / "DMI").write_bytes(table)
    assert smbios.virtual_machine(Root.below(str(tmp_path))) is virtual


def test_who_may_not_read_it_is_told_nothing(tmp_path, monkeypatch):
    root = Root.below(str(tmp_path))
    assert smbios.virtual_machine(root) is None, "no such table"
    folder = tmp_path / "sys/firmware/dmi/tables"
    folder.mkdir(parents=True)
    (folder / "DMI").write_bytes(bios(0x00, 0x10))
    fail_opening(monkeypatch, "/DMI", errno.EACCES)
    assert smbios.virtual_machine(root) is None


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda tail: SYSTEM + tail))
def test_any_table_parses_or_is_refused(table):
    with contextlib.suppress(Malformed):
        assert smbios.parse(table) in (True, False, None)
