"""The fabric manager: found by its service or its name, and its version from its log."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import Link, plant

from gpuhost_exporter.sources.fabric_manager import FabricManager, parse_version

SERVICE = "system.slice/nvidia-fabricmanager.service/cgroup.procs"
HOST = {"proc/2/comm": "kthreadd\n"}
UNIT = {"usr/lib/systemd/system/nvidia-fabricmanager.service": "[Unit]\n"}
# ProtectProc= hides other users' processes, or what is in their folders.
HIDDEN = {"proc/self/ns/pid": Link("pid:[4026531836]")}
CONTAINER = {"proc/self/ns/pid": Link("pid:[4026532201]")}
RUNNING = {"proc/1803/comm": "nv-fabricmanage\n", "proc/17/comm": "bash\n"}
LINE = "[Feb 25 2025 13:59:45] [INFO] [tid 1803] Fabric Manager version 550.144.03 is running with the following\n"


@pytest.mark.parametrize(
    ("files", "runs"),
    [
        (HOST | RUNNING | {f"sys/fs/cgroup/{SERVICE}": "17\n1803\n"}, True),
        (HOST | RUNNING | {f"sys/fs/cgroup/systemd/{SERVICE}": "1803\n"}, True),
        (HOST | RUNNING, True),
        (RUNNING, True),
        (HOST, False),
        (HOST | {"proc/17/comm": "bash\n", f"sys/fs/cgroup/{SERVICE}": "17\n"}, False),
        ({"proc/17/comm": "bash\n"}, None),
        ({}, None),
        (HIDDEN | UNIT | {f"sys/fs/cgroup/{SERVICE}": "1803\n"}, True),
        (HIDDEN | UNIT, False),
        (HIDDEN, None),
        (CONTAINER | UNIT, None),
    ],
    ids=[
        "service",
        "service, version 1",
        "started by hand",
        "in its own container",
        "not running",
        "only its shell",
        "in a container that sees only its own",
        "no /proc",
        "hidden, its service has processes",
        "hidden, its service has none",
        "hidden, and no service of it",
        "hidden by a container",
    ],
)
def test_it_runs_or_not_or_cannot_be_seen(tmp_path, files, runs):
    assert FabricManager(plant(tmp_path, files)).runs() is runs


def test_it_is_found_once_and_missed_when_it_ends(tmp_path):
    manager = FabricManager(plant(tmp_path, HOST | RUNNING))
    assert manager.runs()
    (tmp_path / "proc/1803/comm").write_text("bash\n")
    assert manager.runs() is False


@pytest.mark.parametrize(
    ("log", "version"),
    [
        (LINE, "550.144.03"),
        (LINE + LINE.replace("550.144.03", "580.65.06"), "580.65.06"),
        ("Fabric Manager version is : 450.102.04\n", "450.102.04"),
        ("Received an inband message\n", None),
        ("Fabric Manager version unknown\n", None),
        ("", None),
    ],
    ids=["a start", "two starts", "asked for it", "other lines", "no number", "empty"],
)
def test_the_last_start_in_the_log_tells_the_version(tmp_path, log, version):
    manager = FabricManager(plant(tmp_path, {"var/log/fabricmanager.log": log}))
    assert manager.version() == version


def test_a_version_is_kept_while_the_log_grows_past_it_and_dropped_with_the_log(tmp_path):
    root = plant(tmp_path, {"var/log/fabricmanager.log": LINE})
    manager = FabricManager(root)
    log = tmp_path / "var/log/fabricmanager.log"
    assert manager.version() == "550.144.03"
    with log.open("a") as file:
        file.write("Received an inband message\n" * 60_000)
    assert manager.version() == "550.144.03"
    fresh = tmp_path / "fresh"
    fresh.write_text("nothing yet\n")
    os.replace(fresh, log)
    assert manager.version() is None


def test_a_log_that_is_not_there_tells_nothing(tmp_path):
    assert FabricManager(plant(tmp_path, HOST)).version() is None


@given(st.text())
def test_any_text_names_a_version_or_none(text):
    assert parse_version(text) is None or text
