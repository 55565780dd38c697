"""md arrays as samples."""

from __future__ import annotations

import errno
import math
import os

import pytest
from test_source_raid import MD, array, member, striped
from trees import fail_opening, host_at, values

from gpuhost_exporter.board import Listed
from gpuhost_exporter.collectors.raid import RaidCollector
from gpuhost_exporter.errors import Transient
from gpuhost_exporter.sources.raid import MEMBER_STATES, SYNC_ACTIONS


def poll(folder, files):
    return values(RaidCollector(host_at(folder, files)).poll(0.0))


def test_a_whole_raid0_is_up_and_has_no_samples_of_redundancy(tmp_path):
    assert poll(tmp_path, striped()) == {
        ("array_up", "md0"): 1,
        ("array_info", "md0", "raid0", "", ""): 1,
        ("array_members_expected", "md0"): 2,
        ("array_members", "md0", "active"): 2,
        **{("array_members", "md0", state): 0 for state in MEMBER_STATES if state != "active"},
        ("array_member_up", "md0", "nvme0n1"): 1,
        ("array_member_up", "md0", "nvme1n1"): 1,
    }


def test_a_raid0_that_lost_a_drive_is_down_and_names_it(tmp_path):
    got = poll(tmp_path, striped(there=False))
    assert got["array_up", "md0"] == 0
    assert got["array_members", "md0", "active"] == 1
    assert got["array_members", "md0", "missing"] == 1
    assert got["array_member_up", "md0", "nvme0n1"] == 1
    assert got["array_member_up", "md0", "nvme1n1"] == 0


def test_a_recovering_mirror_is_up_degraded_and_tells_progress(tmp_path):
    files = array("raid1", "2", degraded="1", sync_action="recover", sync_completed="250 / 1000", sync_speed="1024")
    got = poll(tmp_path, files | member("sda", "0") | member("sdb", "1", "spare"))
    assert got["array_up", "md0"] == 1
    assert got["array_degraded_members", "md0"] == 1
    assert got["array_members", "md0", "rebuilding"] == 1
    assert got["array_member_up", "md0", "sdb"] == 0
    assert [action for action in SYNC_ACTIONS if got["array_sync_action", "md0", action]] == ["recover"]
    assert got["array_sync_progress_ratio", "md0"] == 0.25
    assert got["array_sync_bytes_per_second", "md0"] == 1024 * 1024


def test_what_a_check_found_and_errors_made_good_are_told_of_a_mirror(tmp_path):
    files = array("raid1", "2", sync_action="idle", mismatch_cnt="128") | {f"{MD}/dev-sdb/errors": "8\n"}
    files |= {f"{MD}/dev-sdb/bad_blocks": "65536 8\n70000 2\n", f"{MD}/dev-sda/bad_blocks": ""}
    got = poll(tmp_path, files | member("sda", "0") | member("sdb", "1"))
    assert (got["array_member_bad_bytes", "md0", "sda"], got["array_member_bad_bytes", "md0", "sdb"]) == (0, 5120)
    assert got["array_mismatched_bytes", "md0"] == 128 * 512
    assert got["array_member_corrected_errors_total", "md0", "sdb"] == 8
    assert ("array_member_corrected_errors_total", "md0", "sda") not in got, "a kernel that does not tell"


def test_an_idle_mirror_has_neither_progress_nor_speed(tmp_path):
    files = array("raid1", "1", degraded="0", sync_action="idle", sync_completed="none", sync_speed="0")
    got = poll(tmp_path, files | member("sda", "0"))
    assert got["array_sync_action", "md0", "idle"] == 1
    assert got["array_degraded_members", "md0"] == 0
    assert ("array_sync_progress_ratio", "md0") not in got
    assert ("array_sync_bytes_per_second", "md0") not in got


def test_an_array_that_is_not_assembled_is_down_and_expects_nothing(tmp_path):
    got = poll(tmp_path, array("", "", "inactive") | member("sda", "none", "spare"))
    assert got["array_up", "md0"] == 0
    assert got["array_members", "md0", "spare"] == 1
    assert got["array_members", "md0", "missing"] == 0
    assert ("array_members_expected", "md0") not in got


def test_one_arrays_fault_leaves_the_other_and_the_board_has_what_was_read(tmp_path, monkeypatch):
    other = {path.replace("md0", "md1"): text for path, text in array("raid1", "1").items()}
    host = host_at(tmp_path, striped() | other)
    collector = RaidCollector(host)
    fail_opening(monkeypatch, "md1/md/array_state", errno.EIO)
    got = values(collector.poll(0.0))
    assert got["array_up", "md0"] == 1
    assert not [key for key in got if "md1" in key]
    assert collector.errors == {"transient": 1}
    assert [array.name for array in host.board.last("arrays", tuple, host.clock.now())] == ["md0"]


def test_garbage_in_a_member_costs_the_array_and_says_malformed(tmp_path):
    collector = RaidCollector(host_at(tmp_path, striped() | {f"{MD}/dev-nvme0n1/state": "\x00?\n"}))
    assert list(collector.poll(0.0)) == []
    assert collector.errors == {"malformed": 1}


def test_a_host_without_arrays_has_no_samples_and_no_errors(tmp_path):
    host = host_at(tmp_path, {"sys/block/nvme0n1/size": "1\n"})
    collector = RaidCollector(host)
    assert list(collector.poll(0.0)) == []
    assert collector.errors == {}
    assert host.board.last("arrays", tuple, host.clock.now()) == ()


def test_an_array_that_should_be_there_and_is_not_is_down(tmp_path):
    host = host_at(tmp_path, striped())
    host.board.post("missing arrays", ("md0", "md7"), until=math.inf)
    got = values(RaidCollector(host).poll(0.0))
    assert got["array_up", "md7"] == 0
    assert got["array_up", "md0"] == 1, "it is back, and inventory has not seen it yet"
    assert [key for key in got if key[1] == "md7"] == [("array_up", "md7")]


def test_an_array_that_cannot_be_read_stays_listed(tmp_path, monkeypatch):
    host = host_at(tmp_path, striped())
    fail_opening(monkeypatch, "array_state", errno.EIO)
    assert values(RaidCollector(host).poll(0.0)) == {}
    assert host.board.last("listed arrays", tuple, host.clock.now()) == (Listed("md0", None),)


def test_while_arrays_cannot_be_listed_no_list_is_on_the_board(tmp_path, monkeypatch):
    host = host_at(tmp_path, striped())
    collector = RaidCollector(host)
    list(collector.poll(0.0))
    monkeypatch.setattr(os, "listdir", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(Transient):
        list(collector.poll(5.0))
    assert host.board.last("listed arrays", tuple, host.clock.now()) is None


@pytest.mark.parametrize(
    ("uuid", "identity"),
    [
        ({"uuid": "6b8b4567-327b-23c6-643c-986966334873"}, "6b8b4567-327b-23c6-643c-986966334873"),
        ({"uuid": "00000000-0000-0000-0000-000000000000"}, "md0"),
        ({}, "md0"),
    ],
    ids=["told", "not assembled", "an older kernel"],
)
def test_an_array_is_listed_by_its_uuid_where_it_has_one(tmp_path, uuid, identity):
    files = striped() | {f"{MD}/{name}": text for name, text in uuid.items()}
    host = host_at(tmp_path, files)
    assert values(RaidCollector(host).poll(0.0))["array_up", "md0"] == 1
    assert host.board.last("listed arrays", tuple, host.clock.now()) == (Listed("md0", identity),)
