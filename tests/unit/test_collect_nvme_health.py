"""The drives' health log as samples."""

from __future__ import annotations

import logging

import pytest
from support.drives import Controllers, many_drives, page
from support.fakes import FakeClock
from support.gpus import FakeNvml, host_of
from trees import plant, values

from gpuhost_exporter.collectors.nvme_health import NvmeHealthCollector, reading_interval
from gpuhost_exporter.config import CollectorSettings, Settings
from gpuhost_exporter.errors import Absent, Denied, Transient, Unsupported
from gpuhost_exporter.sources.nvme_health import WARNINGS, DriveReader, Report, parse

NOW = 1000.0
PER_DRIVE = 24  # series of a healthy drive


class Bench:
    def __init__(self, folder, drives=2):
        plant(folder, {f"sys/class/nvme/nvme{number}/state": "live" for number in range(drives)})
        self.host = host_of(FakeNvml(), folder)
        self.host.clock = self.clock = FakeClock()
        self.collector = NvmeHealthCollector(self.host)

    def put(self, *reports):
        self.host.drive_health.put(reports)

    def poll(self, after=0.0):
        self.clock.time += after
        return values(self.collector.poll(self.clock.time))


def told(device="nvme0", at=NOW, **fields):
    return Report(device, at, at, parse(page(**fields)))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_a_drive_tells_its_health(bench):
    bench.put(
        told(
            warning=0b10, spare=97, used=104, media_errors=2, unsafe_shutdowns=7, power_cycles=31, power_on_hours=2,
            data_units_read=3, data_units_written=5, light_transitions=8, heavy_transitions=6, light_seconds=90,
            heavy_seconds=30, warning_minutes=4, critical_minutes=1,
        )
    )  # fmt: skip
    raised = {("nvme_critical_warning", "nvme0", name): float(name == "temperature") for name in WARNINGS}
    assert bench.poll(5.0) == raised | {
        ("nvme_health_readable", "nvme0"): 1,
        ("nvme_health_in_flight_seconds", "nvme0"): 0,
        ("nvme_health_timestamp_seconds", "nvme0"): NOW,
        ("nvme_wear_ratio", "nvme0"): 1.04,
        ("nvme_spare_ratio", "nvme0"): 0.97,
        ("nvme_spare_threshold_ratio", "nvme0"): 0.1,
        ("nvme_media_errors_total", "nvme0"): 2,
        ("nvme_unsafe_shutdowns_total", "nvme0"): 7,
        ("nvme_power_cycles_total", "nvme0"): 31,
        ("nvme_power_on_seconds_total", "nvme0"): 7200,
        ("nvme_lifetime_read_bytes_total", "nvme0"): 1_536_000,
        ("nvme_lifetime_written_bytes_total", "nvme0"): 2_560_000,
        ("nvme_thermal_transitions_total", "nvme0", "light"): 8,
        ("nvme_thermal_transitions_total", "nvme0", "heavy"): 6,
        ("nvme_thermal_seconds_total", "nvme0", "light"): 90,
        ("nvme_thermal_seconds_total", "nvme0", "heavy"): 30,
        ("nvme_temperature_exceeded_seconds_total", "nvme0", "warning"): 240,
        ("nvme_temperature_exceeded_seconds_total", "nvme0", "critical"): 60,
    }


def test_before_the_first_answer_nothing_is_said_of_any_drive(bench):
    assert bench.poll() == {}
    assert bench.collector.remarks() == ()


def test_a_silent_drive_says_for_how_long_and_keeps_its_last_figures_for_three_minutes(bench):
    bench.put(told(), told("nvme1"), Report("nvme0", NOW + 60))
    found = bench.poll(62.0)
    assert found["nvme_health_in_flight_seconds", "nvme0"] == 2
    assert found["nvme_health_readable", "nvme0"] == 1
    found = bench.poll(38.0)
    assert (found["nvme_health_in_flight_seconds", "nvme0"], found["nvme_health_readable", "nvme0"]) == (40, 0)
    assert found["nvme_wear_ratio", "nvme0"] == 0.03
    assert found["nvme_health_readable", "nvme1"] == 1
    bench.put(told("nvme1", at=NOW + 180))
    found = bench.poll(81.0)
    assert {key[0] for key in found if key[1] == "nvme0"} == {"nvme_health_readable", "nvme_health_in_flight_seconds"}
    assert found["nvme_wear_ratio", "nvme1"] == 0.03


def test_a_failure_is_counted_once_an_answer_and_costs_its_drive_only(bench, caplog):
    bench.put(Report("nvme0", NOW, NOW + 1, Transient("/dev/nvme0: NVMe status 0x6")), told("nvme1"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found = bench.poll(1.0)
    assert found["nvme_health_readable", "nvme0"] == 0
    assert ("nvme_wear_ratio", "nvme0") not in found
    assert found["nvme_wear_ratio", "nvme1"] == 0.03
    assert bench.collector.errors == {"transient": 1}
    assert bench.collector.remarks() == ("nvme0: transient",)
    assert len(caplog.records) == 1
    bench.put(told(at=NOW + 60))
    assert bench.poll(60.0)["nvme_health_readable", "nvme0"] == 1
    assert bench.collector.remarks() == ()


@pytest.mark.parametrize(
    ("error", "kind"),
    [(Denied("/dev/nvme0: grant CAP_SYS_ADMIN"), "denied"), (Absent("/dev/nvme0: No such file"), "absent")],
    ids=["no capability: doctor adds the line that grants it", "no device node: a container"],
)
def test_what_all_drives_lack_is_one_remark(tmp_path, caplog, error, kind):
    bench = Bench(tmp_path, drives=24)
    bench.put(*(Report(f"nvme{number}", NOW, NOW, error) for number in range(24)))
    with caplog.at_level(logging.WARNING):
        found = bench.poll()
    assert [value for key, value in found.items() if key[0] == "nvme_health_readable"] == [0] * 24
    assert bench.collector.remarks() == (f"health log: {kind}",)
    assert [str(error) in record.getMessage() for record in caplog.records] == [True]
    bench.put(*(told(f"nvme{number}", at=NOW + 60) for number in range(24)))
    bench.poll(60.0)
    assert bench.collector.remarks() == ()


def test_the_line_that_grants_it_names_capability_and_node():
    assert "AmbientCapabilities=CAP_SYS_ADMIN" in NvmeHealthCollector.privilege
    assert "/dev/nvmeN" in NvmeHealthCollector.privilege


def test_a_drive_that_keeps_no_log_is_neither_readable_nor_a_failure(bench):
    bench.put(Report("nvme0", NOW, NOW, Unsupported("keeps no health log")))
    assert bench.poll() == {("nvme_health_in_flight_seconds", "nvme0"): 0}
    assert bench.collector.errors == {}


def test_a_reader_that_ended_is_said_and_the_last_figures_stay_a_while(bench):
    bench.put(told())
    bench.host.drive_health.fail("unavailable", "the privileged reader ended")
    assert bench.poll()["nvme_wear_ratio", "nvme0"] == 0.03
    assert bench.collector.remarks() == ("health log: unavailable",)
    bench.put(told(at=NOW + 5))
    bench.poll(5.0)
    assert bench.collector.remarks() == ()


def test_a_pulled_drive_takes_its_series_along_and_the_next_of_its_name_starts_anew(bench, tmp_path):
    bench.put(told(used=90), told("nvme1"))
    bench.poll()
    (tmp_path / "sys/class/nvme/nvme0").rename(tmp_path / "pulled")
    assert not [key for key in bench.poll() if key[1] == "nvme0"]
    (tmp_path / "pulled").rename(tmp_path / "sys/class/nvme/nvme0")
    assert not [key for key in bench.poll() if key[1] == "nvme0"], "not the figures of the one before it"
    bench.put(told(used=1, at=NOW + 2))
    assert bench.poll(2.0)["nvme_wear_ratio", "nvme0"] == 0.01


def test_a_host_of_24_drives_is_read_whole(tmp_path):
    root = plant(tmp_path, many_drives())
    host = host_of(FakeNvml(), tmp_path)
    host.drive_health.put(DriveReader(root, 60.0, host.clock, Controllers()).look())
    found = values(NvmeHealthCollector(host).poll(NOW))
    assert len(found) == 24 * (PER_DRIVE - 2), "the drive of this page does not report its bytes"
    assert {key[1] for key in found} == {f"nvme{number}" for number in range(24)}


@pytest.mark.parametrize(
    ("chosen", "seconds"),
    [
        (None, 60.0),
        (CollectorSettings(interval=5.0), 60.0),
        (CollectorSettings(interval=300.0), 300.0),
    ],
    ids=["unset", "faster than is good for a drive", "slower"],
)
def test_drives_are_asked_once_a_minute_at_most(chosen, seconds):
    settings = Settings(collectors={} if chosen is None else {"nvme_health": chosen})
    assert reading_interval(settings) == seconds
