"""NFS mounts as the client counts them."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import fail_opening, plant

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources import nfs
from gpuhost_exporter.sources.nfs import NfsMount, Operation

NFS = """device filer:/export/a\\040b mounted on /mnt/a\\040b with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2,rsize=1048576
\tage:\t7968
\tevents:\t52 226 0 0 1 13 398 0 0 331 0 47 0 0 77 0 0 77 0 0 0 0 0 0 0 0 0
\tbytes:\t1 2 3 4 5000 6000 7 8
\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)
\txprt:\ttcp 832 0 1 0 11 6428 6428 0 12154 0
\tper-op statistics
\t        NULL: 1 1 0 44 24 0 0 0 0
\t        READ: 1298 1300 2 207680 1210292152 6 79386 79407 3
\t       WRITE: 10 10 0 1 2 3 4 5 0
\t     GETATTR: 50 50 0 1 2 3 4 500 1
"""
OTHERS = "device proc mounted on /proc with fstype proc\n"


def test_bytes_operations_and_latency_of_a_mount():
    assert nfs.parse_mountstats(OTHERS + NFS + OTHERS) == (
        NfsMount(
            "/mnt/a b",
            "filer:/export/a b",
            5000,
            6000,
            {
                "other": Operation(51, 0, 0, 0.5, 1),
                "READ": Operation(1298, 2, 2, 79.407, 3),
                "WRITE": Operation(10, 0, 0, 0.005, 0),
            },
        ),
    )


def test_older_kernels_count_no_errors():
    text = NFS.replace(" 79407 3", " 79407").replace(" statvers=1.1", " statvers=1.0")
    (mount,) = nfs.parse_mountstats(text)
    assert mount.operations["READ"].errors is None
    assert mount.operations["READ"].seconds == 79.407


def test_what_is_mounted_over_another_is_told_and_each_point_once():
    (mount,) = nfs.parse_mountstats(NFS + NFS.replace("filer:", "other:"))
    assert mount.source == "other:/export/a b"


def test_a_host_without_nfs_has_no_mounts():
    assert nfs.parse_mountstats(OTHERS) == ()


@pytest.mark.parametrize(
    "text",
    [
        NFS.replace("1 2 3 4 5000 6000 7 8", "1 2"),
        NFS.replace("5000", "many"),
        NFS.replace("\tbytes:", "\tbites:"),
        NFS.replace("1298 1300 2 207680 1210292152 6 79386 79407 3", "1298 1300"),
    ],
    ids=["torn bytes", "no number", "no bytes", "torn operation"],
)
def test_what_is_not_mountstats_is_malformed_and_the_mount_named(text):
    with pytest.raises(Malformed, match="/mnt/a b: expected"):
        nfs.parse_mountstats(text)


def test_the_malformed_file_is_named(tmp_path):
    root = plant(tmp_path, {"proc/self/mountstats": NFS.replace("5000", "many")})
    with pytest.raises(Malformed, match="self/mountstats: /mnt"):
        nfs.read(root)


@given(st.text() | st.lists(st.sampled_from([*NFS.splitlines(), "\tbytes: \u00b2 1 1 1 1 1"])).map("\n".join))
def test_any_text_is_mounts_or_malformed(text):
    try:
        found = nfs.parse_mountstats(text)
    except Malformed:
        return
    assert all(mount.read_bytes >= 0 for mount in found)


LISTED = "41 27 0:52 / /mnt/a\\040b rw - nfs4 filer:/export/a\\040b rw\n42 27 9:0 / /data rw - xfs /dev/md0 rw"


def test_the_hosts_mounts_are_those_of_its_first_process(tmp_path):
    root = plant(tmp_path, {"proc/1/mountstats": NFS, "proc/1/mountinfo": LISTED, "proc/self/mountstats": OTHERS})
    found = nfs.read(root)
    assert [mount.point for mount in found.mounts] == ["/mnt/a b"]
    assert found.unread == ()


@pytest.mark.parametrize(
    ("own", "unread"), [(OTHERS, ("/mnt/a b",)), (NFS, ())], ids=["a container", "the host itself"]
)
def test_who_may_not_read_the_hosts_file_says_which_mounts_are_not_told(tmp_path, monkeypatch, own, unread):
    root = plant(tmp_path, {"proc/1/mountstats": NFS, "proc/1/mountinfo": LISTED, "proc/self/mountstats": own})
    fail_opening(monkeypatch, "/1/mountstats", errno.EACCES)
    found = nfs.read(root)
    assert found.unread == unread
    assert [mount.point for mount in found.mounts] == ([] if unread else ["/mnt/a b"])
