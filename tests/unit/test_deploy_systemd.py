"""The systemd unit: what systemd-analyze says against it, alone and with its drop-ins."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = "gpuhost-exporter.service"

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="the unit is NOT checked: no systemd-analyze here"
)


def stage(folder: Path, *drop_ins: str) -> Path:
    """The unit in a folder of its own beside these drop-ins; its program is one that is there."""
    (folder / f"{UNIT}.d").mkdir()
    for name in drop_ins:
        shutil.copy(FOLDER / name, folder / f"{UNIT}.d")
    unit = folder / UNIT
    unit.write_text((FOLDER / UNIT).read_text().replace("/usr/bin/gpuhost-exporter", "/bin/true"))
    return unit


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("drop_ins", "most"),
    [((), 2.4), (("hardened.conf",), 2.0), (("smart.conf",), 2.7)],
    ids=["as installed", "hardened", "with SMART"],
)
def test_the_exposure_is_at_most(tmp_path, drop_ins, most):
    done = analyze("security", "--offline=yes", stage(tmp_path, *drop_ins))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= most
    assert float(found[1]) > 1.0, "hardly anything would work: is this the unit?"


@pytest.mark.parametrize(
    "drop_ins", [(), ("hardened.conf",), ("smart.conf",), ("rdma.conf",)], ids=["unit", "hardened", "smart", "rdma"]
)
def test_systemd_finds_nothing_wrong(tmp_path, drop_ins):
    done = analyze("verify", stage(tmp_path, *drop_ins))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_line_would_be_found(tmp_path):
    unit = stage(tmp_path)
    with unit.open("a") as file:
        file.write("[Service]\nProtectPorc=noaccess\n")
    assert "ProtectPorc" in analyze("verify", unit).stderr


def test_no_capability_but_those_of_the_readers(tmp_path):
    done = analyze("security", "--offline=yes", "--json=short", stage(tmp_path))
    held = {entry["name"] for entry in json.loads(done.stdout) if not entry["set"] and "CapabilityB" in entry["name"]}
    assert held == {
        "CapabilityBoundingSet=~CAP_SYSLOG",
        "CapabilityBoundingSet=~CAP_SYS_PTRACE",
        "CapabilityBoundingSet=~CAP_(DAC_*|FOWNER|IPC_OWNER)",
    }


def settings(*drop_ins: str) -> dict[str, str]:
    """What each line sets, the last of a name."""
    text = "".join((FOLDER / name).read_text() for name in (UNIT, *drop_ins))
    return dict(re.findall(r"(?m)^([A-Za-z]+)=(.*)$", text))


@pytest.mark.parametrize("drop_in", [None, "hardened.conf", "smart.conf", "rdma.conf"])
def test_it_yields_to_the_training_job_and_no_drop_in_takes_that_back(drop_in):
    told = settings(*([drop_in] if drop_in else []))
    assert int(told["Nice"]) > 0
    assert int(told["CPUWeight"]) < 100, "the weight of all others"
    assert int(told["IOWeight"]) < 100
    assert told["MemoryMax"] == "128M"
    assert int(told["OOMScoreAdjust"]) > 0
    assert "CPUAffinity" not in told, "which cores are the job's only the site knows"


def test_a_drop_in_keeps_it_off_the_jobs_cores(tmp_path):
    unit = stage(tmp_path)
    (tmp_path / f"{UNIT}.d" / "cores.conf").write_text("[Service]\nCPUAffinity=0-1\n")
    done = analyze("verify", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_file_systems_below_home_and_a_mounted_marks_folder_outlast_the_sandbox():
    told = settings()
    assert (told["ProtectHome"], told["BindReadOnlyPaths"]) == ("tmpfs", "-/home")
    assert told["RuntimeDirectoryPreserve"] == "yes"
