"""Reading of files as the kernel hands them out."""

from __future__ import annotations

import os

import pytest

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources import files
from gpuhost_exporter.sources.files import LIMIT, read_number, read_text


@pytest.fixture
def by_record(monkeypatch):
    """Each read ends with a record, as a seq_file's does when the next one does not fit into its page."""
    whole = os.read

    def read(descriptor, most):
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        record = whole(descriptor, most).partition(b"\n")
        os.lseek(descriptor, at + len(record[0] + record[1]), os.SEEK_SET)
        return record[0] + record[1]

    monkeypatch.setattr(os, "read", read)


@pytest.mark.parametrize("width", [20, 3000, 5000], ids=["short records", "as long as a page", "longer"])
def test_a_list_that_comes_in_pieces_is_read_to_its_end(tmp_path, by_record, width):
    text = "\n".join(f"{number} {'x' * width}" for number in range(9))
    (tmp_path / "list").write_text(text + "\n")
    assert read_text(str(tmp_path / "list")) == text


def test_the_kernels_own_list_is_read_to_its_end():
    """This process's mappings: several pages of records of uneven length."""
    text = read_text("/proc/self/smaps")
    assert len(text) > 8192
    assert text.rpartition("\n")[2].startswith(("VmFlags:", "ProtectionKey:"))
    assert text.count("VmFlags:") == text.count("\nRss:")


def test_a_file_without_end_is_refused(tmp_path):
    (tmp_path / "endless").write_bytes(b"1" * (LIMIT + 1))
    with pytest.raises(Malformed, match="longer than"):
        read_text(str(tmp_path / "endless"))
    with pytest.raises(Malformed, match="expected a number"):
        read_number(str(tmp_path / "endless"))


@pytest.mark.parametrize("read", [files.read_text, files.read_start, files.read_count, files.names])
def test_a_path_that_garbage_was_put_into_is_malformed(read, tmp_path):
    with pytest.raises(Malformed, match="no path"):
        read(f"{tmp_path}/a\0b")
