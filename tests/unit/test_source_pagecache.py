"""Dirty pages and their thresholds as the kernel gives them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import plant

from gpuhost_exporter.errors import Absent, Malformed
from gpuhost_exporter.sources import pagecache
from gpuhost_exporter.sources.pagecache import Writeback

VMSTAT = """nr_free_pages 120
nr_dirty 10
nr_writeback 2
nr_dirtied 900
nr_written 800
nr_dirty_threshold 60
nr_dirty_background_threshold 30
pgpgin 5"""


def test_pages_are_bytes():
    assert pagecache.parse_vmstat(VMSTAT, 4096) == Writeback(
        dirty=40960, writeback=8192, dirtied=3686400, written=3276800, background_threshold=122880, threshold=245760
    )


def test_the_pages_of_this_machine_are_counted(tmp_path):
    root = plant(tmp_path, {"proc/vmstat": VMSTAT})
    assert pagecache.read(root).dirty == 10 * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("dirty", "throttled"), [(43, False), (44, True)])
def test_writers_wait_half_way_between_the_thresholds(dirty, throttled):
    text = VMSTAT.replace("nr_dirty 10", f"nr_dirty {dirty}")
    assert pagecache.parse_vmstat(text, 4096).throttled() is throttled


@pytest.mark.parametrize("name", ["nr_dirty ", "nr_written ", "nr_dirty_threshold "])
def test_a_number_that_is_missing_or_none_is_malformed_and_named(name):
    line = next(line for line in VMSTAT.splitlines() if line.startswith(name))
    for text in (VMSTAT.replace(line, ""), VMSTAT.replace(line, f"{name}-1")):
        with pytest.raises(Malformed, match=f"expected '{name}PAGES'"):
            pagecache.parse_vmstat(text, 4096)


def test_the_file_is_named(tmp_path):
    with pytest.raises(Malformed, match="proc/vmstat: expected"):
        pagecache.read(plant(tmp_path, {"proc/vmstat": "?"}))
    with pytest.raises(Absent):
        pagecache.read(plant(tmp_path / "none", {}))


@given(st.text() | st.lists(st.sampled_from([*VMSTAT.splitlines(), "nr_dirty \u00b2"])).map("\n".join))
def test_any_text_is_bytes_or_malformed(text):
    try:
        found = pagecache.parse_vmstat(text, 4096)
    except Malformed:
        return
    assert found.dirty >= 0
