"""The whole exposition of each simulated host, from the real process over real HTTP, at a frozen moment.

`pytest tests/golden --update-golden` writes the files anew; read their diff.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from support.daemon import Daemon, parse

from gpuhost_exporter import catalogue
from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.collectors import ALL
from gpuhost_exporter.sim import control

HOSTS = ("h100x8", "l40s", "vm", "mig", "oldkernel", "nogpu")
FROZEN = 600.0
HERE = Path(__file__).parent
# Of this run and machine, not of the simulated host: left out, or only their values.
OWN = ("gpuhost_exporter_", "gpuhost_collector_errors_total")
VOLATILE = (
    "gpuhost_collector_",
    "gpuhost_nvml_in_flight_seconds",
    "gpuhost_boot_time_seconds",
    "gpuhost_gpu_memory_bandwidth_bytes_total",
    "timestamp_seconds",
    "gpuhost_gpu_time_seconds_total",
    "gpuhost_ledger_pending_seconds",
    "gpuhost_gpu_hang_seconds",
    "gpuhost_gpu_busy_sm_ratio",
)


@pytest.fixture(scope="module", params=HOSTS)
def host(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "control.json"
    control.create(str(file), request.param, "steady", SystemClock(), frozen=FROZEN)
    config = folder / "exporter.toml"
    config.write_text("".join(f"[collector.{kind.name}]\ninterval = 1\n" for kind in ALL))
    with Daemon(
        folder, f"--config.file={config}", f"--simulate={request.param}", f"--simulate.control={file}"
    ) as daemon:
        daemon.ready()
        settle(daemon)
        yield request.param, daemon


def settle(daemon):
    """Until nothing has come or gone for 3 s: subjects that join others appear a poll after them."""
    deadline = time.monotonic() + 40
    seen, since = None, time.monotonic()
    while time.monotonic() - since < 3:
        now = golden_lines(daemon.text())
        if now != seen:
            seen, since = now, time.monotonic()
        assert time.monotonic() < deadline
        time.sleep(0.25)


def golden_lines(text):
    lines = []
    for line in text.splitlines():
        if line.startswith(("#", *OWN)):
            continue
        series, _, value = line.rpartition(" ")
        volatile = any(part in series.partition("{")[0] for part in VOLATILE)
        lines.append(f"{series} {'*' if volatile else value}")
    return "\n".join(lines) + "\n"


def test_the_exposition_of_each_host_is_the_recorded_one(host, request):
    name, daemon = host
    seen = golden_lines(daemon.text())
    file = HERE / f"{name}.prom"
    if request.config.getoption("--update-golden"):
        file.write_text(seen)
    assert seen == file.read_text()


def test_every_series_is_in_the_catalogue_with_its_labels(host):
    known = {}
    for name, spec in catalogue.specs().items():
        if spec.kind == "histogram":
            known |= {f"{name}_{part}": {*spec.labels} - {"le"} for part in ("sum", "count")}
            known[f"{name}_bucket"] = {*spec.labels}
        else:
            known[name] = set(spec.labels)
    for name, labels in parse(host[1].text()):
        assert name in known, name
        assert {label for label, _ in labels} == known[name], name


def test_promtool_finds_nothing_to_say(host):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    found = subprocess.run(
        [promtool, "check", "metrics"], input=host[1].text(), capture_output=True, text=True, timeout=30, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_openmetrics_reads_back_as_the_same_series(host):
    _, body = host[1].get("/metrics", Accept="application/openmetrics-text;version=1.0.0")
    opened = {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in parse_openmetrics(body.decode())
        for sample in family.samples
    }
    assert body.endswith(b"# EOF\n")
    assert opened >= set(parse(host[1].text()))


def test_simulated_figures_say_so(host):
    name, daemon = host
    series = daemon.series()
    assert series["gpuhost_simulated", (("target", name),)] == 1
    assert b"SIMULATED" in daemon.get("/")[1]
