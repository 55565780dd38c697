"""The catalogue: what is declared, what is published and what is written down are the same."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from support.fakes import FakeClock
from support.gpus import FakeNvml, host_of, poll

from gpuhost_exporter import catalogue, exposition, runner
from gpuhost_exporter.collector import Collector
from gpuhost_exporter.collectors import ALL, jobs
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.ioctl import Interfaces, ioctl
from gpuhost_exporter.sim.mounts import Statvfs
from gpuhost_exporter.sim.nvml import SimNvml
from gpuhost_exporter.sim.tree import Tree
from gpuhost_exporter.sources.ethtool import Network
from gpuhost_exporter.sources.kmsg import KernelLog
from gpuhost_exporter.sources.latency.results import Round
from gpuhost_exporter.sources.mounts import Capacities
from gpuhost_exporter.sources.nvme_health import DriveReader
from gpuhost_exporter.sources.nvml.reader import Reader
from gpuhost_exporter.sources.state import State
from gpuhost_exporter.specs import Spec, gauge

REPOSITORY = Path(__file__).parents[2]
GPU = ("gpu", "uuid")
# What dashboards, rules and other programs are written against: a change here breaks them.
PROMISED = {
    "gpuhost_gpu_up": GPU,
    "gpuhost_gpus_expected": (),
    "gpuhost_gpu_utilization_ratio": GPU,
    "gpuhost_gpu_sm_active_ratio": GPU,
    "gpuhost_gpu_tensor_active_ratio": GPU,
    "gpuhost_gpu_memory_bandwidth_ratio": GPU,
    "gpuhost_gpu_memory_bandwidth_bytes_per_second": GPU,
    "gpuhost_gpu_power_watts": GPU,
    "gpuhost_gpu_energy_joules_total": GPU,
    "gpuhost_gpu_temperature_celsius": (*GPU, "sensor"),
    "gpuhost_nvlink_up": (*GPU, "link"),
    "gpuhost_nvlink_bytes_total": (*GPU, "link", "direction"),
    "gpuhost_gpu_nvlink_bytes_total": (*GPU, "direction"),
    "gpuhost_nvlink_links_active": GPU,
    "gpuhost_nvlink_links_expected": GPU,
    "gpuhost_nvlink_capacity_bytes_per_second": GPU,
    "gpuhost_nvlink_usable_bytes_per_second": GPU,
    "gpuhost_nvlink_errors_total": (*GPU, "link", "type"),
    "gpuhost_xid_events_total": (*GPU, "severity"),
    "gpuhost_xid_errors_total": (*GPU, "xid"),
    "gpuhost_sxid_errors_total": ("sxid", "fatal"),
    "gpuhost_block_read_bytes_total": ("device",),
    "gpuhost_block_written_bytes_total": ("device",),
    "gpuhost_pressure_stalled_seconds_total": ("resource", "kind"),
    "gpuhost_storage_saturated_seconds_total": ("device", "direction"),
    "gpuhost_storage_saturated_bytes_total": ("device", "direction"),
    "gpuhost_storage_limited_seconds_total": ("device", "by"),
    "gpuhost_filesystem_free_bytes": ("mountpoint",),
    "gpuhost_target_storage_bytes_per_second": ("band",),
    "gpuhost_rdma_port_up": ("device", "port"),
    "gpuhost_rdma_port_bytes_total": ("device", "port", "direction"),
    "gpuhost_rdma_port_rate_bytes_per_second": ("device", "port"),
    "gpuhost_rdma_congestion_events_total": ("device", "port", "type"),
    "gpuhost_rdma_pause_seconds_total": ("device", "priority"),
    "gpuhost_virtualized": ("hypervisor",),
    "gpuhost_cpu_steal_seconds_total": (),
    "gpuhost_numa_node": ("device",),
    "gpuhost_target_nvlink_bandwidth_bytes_per_second": GPU,
    "gpuhost_target_memory_bandwidth_bytes_per_second": GPU,
    "gpuhost_fabric_round_trip_seconds": ("peer", "transport", "le"),
    "gpuhost_fabric_probe_loss_ratio": ("peer", "transport"),
    "gpuhost_target_collective_latency_seconds": (),
    "gpuhost_collector_up": ("collector",),
    "gpuhost_collector_age_seconds": ("collector",),
    "gpuhost_boot_time_seconds": (),
    "gpuhost_simulated": ("target",),
}


def rooms():
    """Every module that may declare metrics, with the Specs in it."""
    names = {kind.__module__ for kind in ALL}
    folder = REPOSITORY / "exporter" / "gpuhost_exporter" / "collectors"
    names |= {f"gpuhost_exporter.collectors.{path.stem}" for path in folder.glob("[a-z]*.py")}
    for name in sorted(names):
        module = import_module(name)
        yield name, {item for item in vars(module).values() if isinstance(item, Spec)}


@pytest.mark.parametrize("name", PROMISED)
def test_a_promised_name_has_exactly_its_labels(name):
    assert catalogue.specs()[name].labels == PROMISED[name]


def test_a_gpu_is_described_by_one_info_series():
    spec = catalogue.specs()["gpuhost_gpu_info"]
    assert (spec.kind, spec.labels[:2]) == ("info", GPU)


def test_every_spec_that_a_room_declares_is_published_by_a_collector():
    published = {spec for kind in ALL for spec in kind.specs}
    declared = {spec for _, specs in rooms() for spec in specs}
    assert declared == published


def test_no_name_is_declared_twice(monkeypatch):
    groups = [spec.name for _, _, specs in catalogue.groups() for spec in specs]
    assert len(groups) == len(set(groups)) == len(catalogue.specs())
    double = gauge(ALL[0].specs[0].name, "Once more.")
    monkeypatch.setattr(exposition, "SPECS", (*exposition.SPECS, double))
    with pytest.raises(ValueError, match=f"{double.name} is declared twice, the second time by exporter"):
        catalogue.specs()


@pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in catalogue.specs().items()])
def test_labels_and_help_follow_the_house(spec):
    if "gpu" in spec.labels or "uuid" in spec.labels:
        assert spec.labels[:2] == GPU or (spec.kind == "info" and "gpu" not in spec.labels)
    whose = {"job", "user"} if spec is jobs.INFO else set()  # one series a GPU; users only where a site asks for them
    assert not {"pid", "process", "user", "job", "quantile", "instance"} & set(spec.labels) - whose
    assert ("le" in spec.labels) == (spec.kind == "histogram")
    assert "\n" not in spec.help
    assert spec.help[0].isupper() or spec.help[0].isdigit()
    if spec.name.startswith("gpuhost_gpu_") and spec.name != "gpuhost_gpus_expected":
        assert spec.labels[:2] == GPU


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_a_collector_says_what_it_is_and_what_it_reads(kind):
    assert kind.help
    assert kind.source
    assert kind.specs
    assert re.fullmatch(r"[a-z][a-z_]*", kind.name)
    assert 0.2 <= kind.interval <= 60
    assert not {"|", "\n"} & set(kind.help + kind.source + kind.privilege), "would break the README's table"


def test_the_collectors_are_all_that_there_are():
    found = {
        item
        for name, _ in rooms()
        for item in vars(import_module(name)).values()
        if isinstance(item, type) and issubclass(item, Collector) and item.__module__ == name and hasattr(item, "name")
    }
    assert found == set(ALL)
    assert len({kind.name for kind in ALL}) == len(ALL)


class Simulated(FakeNvml):
    """A simulated host's library, read in this process."""

    def __init__(self, control_path, clock):
        self.reader = Reader(SimNvml(control_path, clock), clock, lambda uuid, call: None)
        super().__init__(*self.reader.open().gpus)

    def read(self, subject):
        return self.reader.read(subject, frozenset())

    def take_events(self):
        return ()


def test_every_collector_tells_its_own_specs_and_no_others(tmp_path):
    """On an H100 host in its work; a spec that stays silent there belongs to a host that is not so well."""
    clock = FakeClock()
    path = str(tmp_path / "control.json")
    control.create(path, "h100x8", "steady", clock)
    Tree(path, str(tmp_path / "root"), clock).write()
    nvml = Simulated(path, clock)
    host = host_of(nvml, tmp_path / "root")
    host.clock, host.kernel_log, host.state = clock, KernelLog(), State(str(tmp_path / "state"))
    host.capacities = Capacities(Statvfs(str(tmp_path / "root")))
    host.network = Network(Interfaces(str(tmp_path / "root")))
    host.drive_health.put(DriveReader(host.root, 60.0, clock, ioctl).look())
    host.latency.put(Round("gpu-b", "tcp", (1e-4,), 1, 0, clock.wall()))
    subjects = [kind(host) for kind in ALL]
    for collector in subjects:
        poll(collector, clock.now())
    clock.time += 1.0  # a ratio needs two looks, and what joins subjects needs those
    told = {collector.name: poll(collector, clock.now()) for collector in subjects}
    assert [collector.remarks() for collector in subjects] == [()] * len(ALL)
    nvml.reader.close()
    assert {name for name, series in told.items() if not series} == {"mig", "verify"}
    silent = {
        spec.name for kind in ALL for spec in kind.specs if spec.name.removeprefix("gpuhost_") not in told[kind.name]
    }
    # A healthy host has no errors to tell.
    assert silent & set(PROMISED) == {"gpuhost_sxid_errors_total", "gpuhost_nvlink_errors_total"}


def test_the_exporters_own_metrics_are_in_the_catalogue():
    assert {*runner.SPECS, *exposition.SPECS} <= set(catalogue.specs().values())


def test_the_page_of_metrics_is_the_committed_one():
    """`make metrics` writes it anew."""
    assert (REPOSITORY / "exporter" / "METRICS.md").read_text() == catalogue.metrics_page()


def test_the_page_names_every_metric_once_in_a_table_of_five_columns():
    rows = [line for line in catalogue.metrics_page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(catalogue.specs())
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {7}


def test_the_table_of_collectors_in_the_readme_is_the_generated_one():
    readme = (REPOSITORY / "README.md").read_text()
    found = re.search(r"<!-- collectors -->\n+(.*?)\n*<!-- /collectors -->", readme, re.DOTALL)
    assert found is not None
    assert found[1] + "\n" == catalogue.collectors_table()
