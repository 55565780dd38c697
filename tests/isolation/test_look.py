"""`snapshot` and `doctor` as processes, on simulated hosts."""

from __future__ import annotations

import json
import re
import time

import pytest
from support.daemon import Daemon, select, value
from support.simulated import arguments

from gpuhost_exporter import catalogue, table
from gpuhost_exporter.collectors import ALL
from gpuhost_exporter.specs import Sample
from gpuhost_exporter.status import build


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
    assert any(re.search(r"^md0 raid0 +up +4 / 4 +[\d.]+ (?:[MG]B/s )?/ 20\.0 GB/s ", line) for line in lines)
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


POWER_CYCLE = "Drain the host and power-cycle it; if the GPU does not come back, have it exchanged."
RESET = "Drain the host; reset the GPU or reboot."
# The slowest of them: one by its interval, one by needing two readings of a reader started anew.
READ = ("gpu_utilization_ratio", "nvlink_usable_bytes_per_second", "gpu_tensor_active_ratio")
FIGURES = ("utilization", "tensor", "memory_bandwidth", "nvlink_usable", "power", "temperature", "memory_used")


def samples_of(series):
    specs = catalogue.specs()
    for (name, labels), number in series.items():
        if name in specs:
            yield Sample(specs[name], tuple(dict(labels)[label] for label in specs[name].labels), number)


@pytest.mark.parametrize(
    ("scenario", "state", "code", "headline", "action"),
    [
        ("gpu-lost", "lost", "79", "GPU 3: lost: it fell off the bus", POWER_CYCLE),
        ("driver-hung", "hung", "119", "GPU 3: a call to it does not return", RESET),
    ],
)
def test_one_broken_gpu_leads_page_and_snapshot_and_takes_no_sibling_along(
    tmp_path, scenario, state, code, headline, action
):
    config = tmp_path / "exporter.toml"
    config.write_text("[nvml]\ncall-timeout = 1\n")
    steered = arguments(tmp_path, "h100x8", scenario, elapsed=12.0)
    with Daemon(tmp_path, f"--config.file={config}", *steered) as daemon:
        daemon.wait_until(lambda seen: all(len(select(seen, f"gpuhost_{name}")) == 8 for name in READ), 15)
        series = daemon.wait_until(
            lambda seen: (
                value(seen, "gpuhost_gpu_state", gpu="3", state=state) == 1
                and select(seen, "gpuhost_xid_last_timestamp_seconds", gpu="3", xid=code)
                and all(len(select(seen, f"gpuhost_{name}")) == 7 for name in READ)
            ),
            40,
        )
        begin = time.monotonic()
        page = daemon.get("/")[1].decode()
        assert time.monotonic() - begin < 1
    assert f"<h1>{headline}</h1>" in page
    assert f"XID {code}" in page

    status = build(samples_of(series))
    assert (status.verdict, status.headline, status.action) == ("critical", headline, action)
    xids = [finding for finding in status.findings if f"XID {code}" in finding.message]
    assert [(finding.severity, finding.action) for finding in xids] == [("critical", action)], "told with its time"
    assert {finding.subject for finding in status.findings if finding.severity == "critical"} == {"GPU 3"}
    broken = status.gpus[3]
    assert (broken.state, broken.xids, broken.xid_severity) == (state, 1, "critical")
    assert {getattr(broken, figure) for figure in FIGURES} == {None}
    for row in status.gpus[:3] + status.gpus[4:]:
        assert row.state == "ok"
        assert None not in {getattr(row, figure) for figure in FIGURES}
    lines = table.render(status).splitlines()
    assert lines[1:3] == [headline, action]
    assert max(map(len, lines)) <= table.WIDTH
