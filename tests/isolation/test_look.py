"""`snapshot` and `doctor` as processes, on simulated hosts."""

from __future__ import annotations

import json
import re

import pytest

from gpuhost_exporter.collectors import ALL


@pytest.mark.parametrize("host", ["h100x8", "l40s", "vm", "mig", "oldkernel", "nogpu"])
def test_a_snapshot_says_first_how_the_host_is_and_fits_a_terminal(run, host):
    done = run("snapshot", f"--simulate={host}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"SIMULATED host {host}: no figure here is real"
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("drive ") for line in lines) == (host != "vm")
    assert any(line.startswith("GPU ") for line in lines) == (host != "nogpu")


def test_a_snapshot_of_a_healthy_host_has_a_row_a_gpu_with_figures_against_targets(run):
    lines = run("snapshot", "--simulate=h100x8").stdout.splitlines()
    assert lines[1] == "All 8 GPUs deliver"
    rows = [line for line in lines if line[:1].isdecimal() and line[1:].lstrip().startswith("ok ")]
    assert len(rows) == 8
    assert any(re.search(r"^md0 raid0 +up +4 / 4 +\d\.\d\d GB/s ", line) for line in lines)
    for row in rows:
        assert re.search(r" [1-9]\d % +[1-9]\d % +\d\.\d\d / 3\.35 TB/s ", row)
        assert "900 / 900 GB/s  18/18" in row
    assert not [line for line in lines if line.startswith("collector ")], "a collector that is well is not mentioned"


def test_a_snapshot_of_a_broken_host_names_the_worst_and_what_to_do(run):
    lines = run("snapshot", "--simulate=h100x8:fabric-broken").stdout.splitlines()
    assert lines[1].startswith("GPUs 0-7: no NVLink")
    assert lines[2].startswith("Look at the fabric manager")
    assert sum("  0 / 900 GB/s" in line for line in lines) == 8


def test_a_snapshot_for_programs_has_every_sample_and_is_json_even_when_nothing_answered(run):
    whole = json.loads(run("snapshot", "--json", "--simulate=vm").stdout)
    assert (whole["simulated"], whole["no_answer"]) == ("vm", [])
    power = [sample for sample in whole["samples"] if sample["name"] == "gpuhost_gpu_power_watts"]
    assert {sample["labels"]["gpu"] for sample in power} == set("01234567")
    assert all(sample["value"] > 0 for sample in power)
    hasty = run("snapshot", "--json", "--simulate=vm", "--timeout=0.001s")
    assert "gpu" in json.loads(hasty.stdout)["no_answer"]


def test_doctor_says_of_each_collector_whether_it_is_on_and_why_not(run):
    done = run("doctor", "--simulate=nogpu", "--no-collector.rdma", "--collector.mig")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:] if not line.startswith(" ")}
    assert list(rows) == [kind.name for kind in ALL]
    assert rows["rdma"].endswith("switched off")
    assert "not here" in rows["gpu"]
    assert rows["block"].split()[1] == "on"
    assert "granted by" not in done.stdout, "no permission grants what is not there"
