"""md arrays as sysfs shows them."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import Link, fail_opening, plant, vanish_opening

from gpuhost_exporter.errors import Absent, Denied, Gone, Malformed, SourceError
from gpuhost_exporter.sources import raid
from gpuhost_exporter.sources.raid import Array, Member

MD = "sys/block/md0/md"


def member(name: str, slot: str, state: str = "in_sync", *, there: bool = True) -> dict[str, str]:
    files = {
        f"{MD}/dev-{name}/state": f"{state}\n",
        f"{MD}/dev-{name}/slot": f"{slot}\n",
        f"{MD}/dev-{name}/block": Link(f"../../../{name}"),
    }
    return files | ({f"sys/block/{name}/size": "1\n"} if there else {})


def array(level: str, disks: str, state: str = "clean", **more: str) -> dict[str, str]:
    files = {"level": level, "raid_disks": disks, "array_state": state, **more}
    return {f"{MD}/{file}": f"{text}\n" for file, text in files.items()}


def striped(*, there: bool = True) -> dict[str, str]:
    return array("raid0", "2") | member("nvme0n1", "0") | member("nvme1n1", "1", there=there)


def test_an_array_is_read_whole(tmp_path):
    files = array(
        "raid1",
        "2",
        "active",
        metadata_version="1.2",
        uuid="6b8b4567-327b-23c6-643c-986966334873",
        degraded="1",
        sync_action="recover",
        sync_completed="250 / 1000",
        sync_speed="2048",
        mismatch_cnt="128",
    )
    files |= (
        {f"{MD}/dev-sda/errors": "8\n"}
        | member("sda", "0")
        | member("sdb", "1", "spare")
        | member("sdc", "none", "faulty")
    )
    assert raid.read(plant(tmp_path, files), "md0") == Array(
        name="md0",
        level="raid1",
        state="active",
        raid_disks=2,
        members=(Member("sda", "active", 0, 8), Member("sdb", "rebuilding", 1), Member("sdc", "faulty", None)),
        metadata="1.2",
        uuid="6b8b4567-327b-23c6-643c-986966334873",
        degraded=1,
        sync=raid.Sync("recover", 0.25, 2048 * 1024, 128 * 512),
        layout=None,
    )


def test_raid0_has_neither_degraded_nor_sync_nor_errors_made_good(tmp_path):
    got = raid.read(plant(tmp_path, striped() | {f"{MD}/dev-nvme0n1/errors": "0\n"}), "md0")
    assert {member.corrected_errors for member in got.members} == {None}
    assert (got.degraded, got.sync) == (None, None)
    assert got.reachable()
    assert got.count("missing") == 0


def test_the_layout_that_a_raid0_does_not_have_costs_nothing(tmp_path):
    assert raid.read(plant(tmp_path, striped() | array("raid0", "2", layout="-1")), "md0").layout is None


def test_raid0_whose_members_link_leads_nowhere_is_unreachable_though_md_calls_it_clean(tmp_path):
    got = raid.read(plant(tmp_path, striped(there=False)), "md0")
    assert got.state == "clean"
    assert got.members == (Member("nvme0n1", "active", 0), Member("nvme1n1", "missing", 1))
    assert not got.reachable()


def test_a_member_without_any_link_is_judged_by_its_state(tmp_path):
    files = {path: text for path, text in striped().items() if not path.endswith("/block")}
    assert raid.read(plant(tmp_path, files), "md0").reachable()


def made(level: str, disks: int, active: set[int], state: str = "active", layout: int | None = None) -> Array:
    members = tuple(Member(f"nvme{slot}n1", "active", slot) for slot in sorted(active))
    return Array("md0", level, state, disks, members, None, None, None, None, layout)


REACHABLE = [
    ("raid0", 2, {0, 1}, None, True),
    ("raid0", 2, {0}, None, False),
    ("linear", 2, {1}, None, False),
    ("raid1", 3, {2}, None, True),
    ("raid1", 2, set(), None, False),
    ("raid4", 4, {0, 1, 2}, None, True),
    ("raid5", 4, {0, 1}, None, False),
    ("raid6", 5, {0, 1, 4}, None, True),
    ("raid6", 5, {0, 1}, None, False),
    ("raid10", 4, {0, 2}, 0x102, True),
    ("raid10", 4, {0, 1}, 0x102, False),
    ("raid10", 4, {0, 2}, 0x201, True),
    ("raid10", 4, {0, 1}, 0x201, False),
    ("raid10", 3, {0, 1}, 0x102, True),
    ("raid10", 3, {0}, 0x102, False),
    ("raid10", 4, {0, 1, 2}, 0, False),
    ("raid10", 4, {0, 1, 2, 3}, 0, True),
    ("raid10", 4, {0}, None, True),
    ("multipath", 2, {0}, None, True),
]


@pytest.mark.parametrize(("level", "disks", "active", "layout", "reachable"), REACHABLE)
def test_data_is_reachable_while_a_copy_or_the_parity_of_all_of_it_is_there(level, disks, active, layout, reachable):
    assert made(level, disks, active, layout=layout).reachable() is reachable


@pytest.mark.parametrize("state", ["clear", "inactive", "broken"])
def test_an_array_that_md_does_not_serve_is_unreachable_with_all_members_there(state):
    assert not made("raid1", 2, {0, 1}, state).reachable()


@pytest.mark.parametrize("state", ["clean", "active", "active-idle", "write-pending", "readonly", "read-auto"])
def test_an_array_that_md_serves_is_reachable(state):
    assert made("raid1", 2, {0, 1}, state).reachable()


def test_a_member_that_left_without_a_trace_is_missing_and_a_faulty_one_is_not_counted_twice():
    one = Member("sda", "active", 0)
    gone = Array("md0", "raid1", "active", 2, (one,), None, None, 1, None, None)
    failed = Array("md0", "raid1", "active", 2, (one, Member("sdb", "faulty", None)), None, None, 1, None, None)
    assert (gone.count("missing"), gone.count("faulty")) == (1, 0)
    assert (failed.count("missing"), failed.count("faulty")) == (0, 1)


FLAGS = [
    ("in_sync", 0, "active"),
    ("in_sync,write_mostly", 1, "active"),
    ("faulty", None, "faulty"),
    ("faulty,in_sync", 0, "faulty"),
    ("spare", None, "spare"),
    ("spare", 2, "rebuilding"),
    ("journal", None, "journal"),
]


@pytest.mark.parametrize(("text", "slot", "state"), FLAGS)
def test_mds_flags_become_one_state(text, slot, state):
    assert raid.parse_member_state(text, slot) == state


PROGRESS = [
    ("none", None),
    ("delayed", None),
    ("0 / 1000", 0.0),
    ("500 / 1000", 0.5),
    ("1001 / 1000", 1.0),
]


@pytest.mark.parametrize(("text", "ratio"), PROGRESS)
def test_progress_is_the_share_done(text, ratio):
    assert raid.parse_progress(text) == ratio


@pytest.mark.parametrize(("text", "number"), [("4", 4), ("5 (4)", 5), ("258", 258)])
def test_of_two_numbers_during_a_reshape_the_new_one_counts(text, number):
    assert raid.parse_present(text) == number


@pytest.mark.parametrize(
    "parse",
    [raid.parse_progress, raid.parse_present, lambda text: raid.parse_member_state(text, None)],
    ids=["progress", "disks", "member"],
)
@pytest.mark.parametrize("text", ["", "garbage", "1 / 0", "1 /", "-1", "4 (", "9" * 30])
def test_what_md_does_not_write_is_malformed(parse, text):
    with pytest.raises(Malformed, match="expected"):
        parse(text)


@pytest.mark.parametrize("text", ["65536", "65536 8 9", "first 8", "1 -8", "1 8\n2"])
def test_what_is_no_list_of_bad_blocks_is_malformed(text):
    with pytest.raises(Malformed, match="expected lines of 'FIRST COUNT'"):
        raid.parse_bad_blocks(text)


@given(st.text())
def test_any_text_parses_or_is_malformed(text):
    for parse in (
        raid.parse_progress,
        raid.parse_present,
        raid.parse_bad_blocks,
        lambda text: raid.parse_member_state(text, 1),
    ):
        with contextlib.suppress(Malformed):
            parse(text)


@given(st.integers(1, 12), st.integers(0, 1 << 20), st.sets(st.integers(0, 11)), st.integers(0, 11))
def test_raid10_needs_some_members_and_never_suffers_from_one_more(disks, layout, some, another):
    assert raid.raid10_reachable(disks, layout, set(range(disks)))
    assert not raid.raid10_reachable(disks, layout, set())
    if raid.raid10_reachable(disks, layout, some & set(range(disks))):
        assert raid.raid10_reachable(disks, layout, (some | {another}) & set(range(disks)))


def test_arrays_are_md_devices_without_firmware_raids_containers(tmp_path):
    files = {
        "sys/block/md0/md/metadata_version": "1.2\n",
        "sys/block/md126/md/metadata_version": "external:/md127/0\n",
        "sys/block/md127/md/metadata_version": "external:imsm\n",
        "sys/block/mdx/size": "0\n",
        "sys/block/nvme0n1/size": "1\n",
    }
    assert raid.arrays(plant(tmp_path, files)) == ("md0", "md126")
    with pytest.raises(Absent):
        raid.arrays(plant(tmp_path / "other", {}))


@pytest.mark.parametrize("file", ["level", "raid_disks", "array_state"])
def test_an_array_that_does_not_tell_what_md_always_tells_is_an_error(tmp_path, monkeypatch, file):
    root = plant(tmp_path, striped())
    (tmp_path / MD / file).unlink()
    with pytest.raises(Absent):
        raid.read(root, "md0")
    fail_opening(monkeypatch, f"/md/{file}", errno.EACCES)
    with pytest.raises(Denied):
        raid.read(root, "md0")


def test_an_array_that_is_stopped_while_it_is_read_is_gone(tmp_path, monkeypatch):
    root = plant(tmp_path, striped())
    vanish_opening(monkeypatch, "/level", tmp_path / "sys/block/md0")
    with pytest.raises(Gone):
        raid.read(root, "md0")


def test_a_member_that_leaves_while_it_is_read_is_no_member(tmp_path, monkeypatch):
    root = plant(tmp_path, striped())
    vanish_opening(monkeypatch, "dev-nvme0n1/slot", tmp_path / MD / "dev-nvme0n1")
    got = raid.read(root, "md0")
    assert [one.name for one in got.members] == ["nvme1n1"]
    assert not got.reachable()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(content=st.binary(max_size=200))
def test_any_bytes_in_every_file_are_a_reading_or_a_source_error(tmp_path, content):
    files = array("raid10", "2", sync_action="idle", sync_completed="none", layout="258", degraded="0")
    folder = tmp_path / str(len(os.listdir(tmp_path)))
    root = plant(folder, files | member("nvme0n1", "0"))
    for file in (*files, f"{MD}/dev-nvme0n1/state", f"{MD}/dev-nvme0n1/slot"):
        (folder / file).write_bytes(content)
    with contextlib.suppress(SourceError):
        raid.read(root, "md0").reachable()
