"""Disk counters that wrap, restart and change hands, as samples."""

from __future__ import annotations

import errno

import pytest
from trees import fail_opening, host_at, values

from gpuhost_exporter.collectors.block import BlockCollector
from gpuhost_exporter.sources.block import BlockDevice, Field

WRAP = 1 << 32


def fields(**known: int) -> list[int]:
    return [known.get(field.name.lower(), 0) for field in Field]


class Bench:
    """A collector over a tree whose diskstats the test rewrites."""

    def __init__(self, folder, names=("nvme0n1",), length=17):
        self.host = host_at(folder, {f"sys/block/{name}/size": "16\n" for name in names})
        (folder / "proc").mkdir()
        self.diskstats = folder / "proc" / "diskstats"
        self.collector = BlockCollector(self.host)
        self.length = length
        self.now = 0.0

    def poll(self, **devices: list[int]) -> dict[tuple[str, ...], float]:
        text = "".join(f"259 0 {n} {' '.join(map(str, f[: self.length]))}\n" for n, f in devices.items())
        return self.poll_text(text)

    def poll_text(self, text: str) -> dict[tuple[str, ...], float]:
        self.diskstats.write_text(text)
        self.now += 1
        return values(self.collector.poll(self.now))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_bytes_are_sectors_times_512_and_equal_the_kernels_count(bench):
    got = bench.poll(nvme0n1=fields(read_sectors=7, written_sectors=2**40, reads=3, writes=9, discarded_sectors=5))
    assert got["block_read_bytes_total", "nvme0n1"] == 7 * 512
    assert got["block_written_bytes_total", "nvme0n1"] == 2**40 * 512
    assert got["block_discarded_bytes_total", "nvme0n1"] == 5 * 512
    assert got["block_reads_completed_total", "nvme0n1"] == 3
    assert got["block_writes_completed_total", "nvme0n1"] == 9


TIMES = {
    "read_milliseconds": "block_read_seconds_total",
    "write_milliseconds": "block_write_seconds_total",
    "busy_milliseconds": "block_io_seconds_total",
    "weighted_milliseconds": "block_weighted_io_seconds_total",
    "discard_milliseconds": "block_discard_seconds_total",
    "flush_milliseconds": "block_flush_seconds_total",
}


@pytest.mark.parametrize(("field", "metric"), TIMES.items(), ids=TIMES)
def test_time_goes_on_over_a_wrap_at_32_bits(bench, field, metric):
    assert bench.poll(nvme0n1=fields(**{field: WRAP - 500}))[metric, "nvme0n1"] == 0
    assert bench.poll(nvme0n1=fields(**{field: WRAP - 100}))[metric, "nvme0n1"] == pytest.approx(0.4)
    assert bench.poll(nvme0n1=fields(**{field: 200}))[metric, "nvme0n1"] == pytest.approx(0.7)


def test_a_step_back_of_a_few_milliseconds_is_not_a_wrap(bench):
    bench.poll(nvme0n1=fields(busy_milliseconds=1000))
    bench.poll(nvme0n1=fields(busy_milliseconds=1400))
    got = bench.poll(nvme0n1=fields(busy_milliseconds=1396))
    assert got["block_io_seconds_total", "nvme0n1"] == pytest.approx(0.4)


def test_another_drive_under_the_same_name_starts_its_counters_again(bench):
    bench.poll(nvme0n1=fields(reads=100, read_sectors=1000, read_milliseconds=50))
    bench.poll(nvme0n1=fields(reads=200, read_sectors=2000, read_milliseconds=80))
    got = bench.poll(nvme0n1=fields(reads=4, read_sectors=32, read_milliseconds=2))
    assert got["block_read_bytes_total", "nvme0n1"] == 32 * 512
    assert got["block_reads_completed_total", "nvme0n1"] == 4
    assert got["block_read_seconds_total", "nvme0n1"] == 0
    got = bench.poll(nvme0n1=fields(reads=5, read_sectors=40, read_milliseconds=3))
    assert got["block_read_bytes_total", "nvme0n1"] == 40 * 512
    assert got["block_read_seconds_total", "nvme0n1"] == pytest.approx(0.001)


def test_a_torn_line_hides_the_disk_for_one_poll_and_its_time_goes_on(tmp_path):
    bench = Bench(tmp_path, ("nvme0n1", "nvme1n1"))
    busy = fields(reads=1, busy_milliseconds=100)
    bench.poll(nvme0n1=busy, nvme1n1=busy)
    bench.poll(nvme0n1=busy, nvme1n1=fields(reads=2, busy_milliseconds=900))
    torn = bench.poll_text(f"259 0 nvme0n1 {' '.join(map(str, busy))}\n259 0 nvme1n1 2 0 ")
    assert ("block_io_seconds_total", "nvme0n1") in torn
    assert ("block_io_seconds_total", "nvme1n1") not in torn
    assert ("block_read_bytes_total", "nvme1n1") not in torn
    assert bench.collector.errors == {"malformed": 1}
    got = bench.poll(nvme0n1=busy, nvme1n1=fields(reads=3, busy_milliseconds=1100))
    assert got["block_io_seconds_total", "nvme1n1"] == pytest.approx(1.0)


def test_a_disk_that_left_has_no_samples_and_is_new_when_it_returns(tmp_path):
    bench = Bench(tmp_path, ("nvme0n1", "nvme1n1"))
    bench.poll(nvme0n1=fields(reads=1), nvme1n1=fields(reads=9, busy_milliseconds=10))
    bench.poll(nvme0n1=fields(reads=1), nvme1n1=fields(reads=9, busy_milliseconds=50))
    (tmp_path / "sys/block/nvme1n1").rename(tmp_path / "away")
    got = bench.poll(nvme0n1=fields(reads=1))
    assert not [key for key in got if "nvme1n1" in key]
    assert bench.collector.errors == {}
    (tmp_path / "away").rename(tmp_path / "sys/block/nvme1n1")
    got = bench.poll(nvme0n1=fields(reads=1), nvme1n1=fields(reads=2, busy_milliseconds=70))
    assert got["block_reads_completed_total", "nvme1n1"] == 2
    assert got["block_io_seconds_total", "nvme1n1"] == 0


def test_a_multipath_disk_is_the_sum_of_its_paths_and_they_have_no_samples(tmp_path):
    bench = Bench(tmp_path, ("nvme0n1", "nvme0c0n1", "nvme0c1n1"))
    path = fields(read_sectors=10, reads=1, in_flight=2)
    got = bench.poll(nvme0n1=fields(), nvme0c0n1=path, nvme0c1n1=path)
    assert got["block_read_bytes_total", "nvme0n1"] == 20 * 512
    assert got["block_in_flight", "nvme0n1"] == 4
    assert {key[1] for key in got} == {"nvme0n1"}


def test_a_multipath_disk_never_goes_back_when_a_path_leaves_or_restarts(tmp_path):
    bench = Bench(tmp_path, ("nvme0n1", "nvme0c0n1", "nvme0c1n1"))
    path = fields(read_sectors=1000, reads=100)
    read = ("block_read_bytes_total", "nvme0n1")
    assert bench.poll(nvme0n1=fields(), nvme0c0n1=path, nvme0c1n1=path)[read] == 2000 * 512
    (tmp_path / "sys/block/nvme0c1n1").rename(tmp_path / "away")
    more = fields(read_sectors=1500, reads=150)
    assert bench.poll(nvme0n1=fields(), nvme0c0n1=more)[read] == 2500 * 512
    (tmp_path / "away").rename(tmp_path / "sys/block/nvme0c1n1")
    new = fields(read_sectors=8, reads=1)
    assert bench.poll(nvme0n1=fields(), nvme0c0n1=more, nvme0c1n1=new)[read] == 2508 * 512


def test_a_head_that_begins_to_count_takes_over_without_a_step_back(tmp_path):
    bench = Bench(tmp_path, ("nvme0n1", "nvme0c0n1"))
    read = ("block_read_bytes_total", "nvme0n1")
    assert bench.poll(nvme0n1=fields(), nvme0c0n1=fields(read_sectors=100, reads=9))[read] == 100 * 512
    head = fields(read_sectors=3, reads=1)
    assert bench.poll(nvme0n1=head, nvme0c0n1=fields(read_sectors=103, reads=10))[read] == 103 * 512
    head = fields(read_sectors=5, reads=2)
    assert bench.poll(nvme0n1=head, nvme0c0n1=fields(read_sectors=105, reads=11))[read] == 105 * 512


@pytest.mark.parametrize(
    ("length", "present", "absent"),
    [
        (11, (), ("block_discards_completed_total", "block_discarded_bytes_total", "block_flush_seconds_total")),
        (15, ("block_discards_completed_total", "block_discard_seconds_total"), ("block_flushes_completed_total",)),
        (17, ("block_flushes_completed_total", "block_flush_seconds_total"), ()),
    ],
)
def test_what_a_kernel_does_not_count_has_no_sample(tmp_path, length, present, absent):
    got = Bench(tmp_path, length=length).poll(nvme0n1=fields(reads=1))
    assert {(name, "nvme0n1") for name in present} <= got.keys()
    assert not {(name, "nvme0n1") for name in absent} & got.keys()


def test_an_array_whose_kernel_keeps_no_time_has_no_time_samples(tmp_path):
    bench = Bench(tmp_path, ("md0", "nvme0n1"))
    idle = fields(reads=10, read_sectors=80)
    got = bench.poll(md0=idle, nvme0n1=idle)
    assert got["block_read_bytes_total", "md0"] == 80 * 512
    for metric in (*TIMES.values(), "block_in_flight"):
        assert (metric, "md0") not in got
        assert (metric, "nvme0n1") in got
    got = bench.poll(md0=fields(reads=10, read_sectors=80, busy_milliseconds=4), nvme0n1=idle)
    assert ("block_io_seconds_total", "md0") in got


def test_what_the_device_is_is_read_again_only_once_a_minute(bench, tmp_path):
    size = ("block_size_bytes", "nvme0n1")
    assert bench.poll(nvme0n1=fields())[size] == 16 * 512
    (tmp_path / "sys/block/nvme0n1/size").write_text("32\n")
    assert bench.poll(nvme0n1=fields())[size] == 16 * 512
    bench.now += 60
    assert bench.poll(nvme0n1=fields())[size] == 32 * 512
    assert bench.host.board.last("block", tuple, bench.host.clock.now()) == (
        BlockDevice("nvme0n1", 32 * 512, None, None, None, None),
    )


def test_a_size_that_cannot_be_read_costs_neither_counters_nor_siblings(tmp_path, monkeypatch):
    bench = Bench(tmp_path, ("nvme0n1", "nvme1n1"))
    fail_opening(monkeypatch, "nvme0n1/size", errno.EIO)
    got = bench.poll(nvme0n1=fields(reads=1), nvme1n1=fields(reads=1))
    assert ("block_size_bytes", "nvme0n1") not in got
    assert ("block_info", "nvme0n1", "", "", "", "") not in got
    assert ("block_size_bytes", "nvme1n1") in got
    assert got["block_reads_completed_total", "nvme0n1"] == 1
    assert bench.collector.errors == {"transient": 1}
