"""The drives' health log: what a page means, how it is asked for, and that a silent drive holds up no other."""

from __future__ import annotations

import errno
import math
import os
import shutil
import struct
import threading
import time
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drives import ADMIN_COMMAND, Controllers, page
from support.fakes import FakeClock
from trees import plant

from gpuhost_exporter.errors import (
    Absent,
    Denied,
    Gone,
    Malformed,
    SourceError,
    Transient,
    Unavailable,
    Unsupported,
)
from gpuhost_exporter.sources.nvme import Temperature
from gpuhost_exporter.sources.nvme_health import WARNINGS, DriveHealth, DriveReader, Report, parse, read

MOST = (1 << 128) - 1


def test_a_page_is_read_whole_in_base_units():
    health = parse(
        page(
            warning=0b101, kelvin=316, spare=97, threshold=10, used=12, sensors=(316, 0, 331),
            data_units_read=3, data_units_written=5, power_cycles=31, power_on_hours=9127, unsafe_shutdowns=7,
            media_errors=2, warning_minutes=4, critical_minutes=1, light_transitions=8, heavy_transitions=6,
            light_seconds=90, heavy_seconds=30,
        )
    )  # fmt: skip
    assert asdict(health) == {
        "warnings": ("spare_low", "reliability_degraded"),
        "wear_ratio": 0.12,
        "spare_ratio": 0.97,
        "spare_threshold_ratio": 0.1,
        "temperatures": (
            {"sensor": "composite", "celsius": 42.85},
            {"sensor": "1", "celsius": 42.85},
            {"sensor": "3", "celsius": 57.85},
        ),
        "read_bytes": 3 * 512_000,
        "written_bytes": 5 * 512_000,
        "power_cycles": 31,
        "power_on_seconds": 9127 * 3600,
        "unsafe_shutdowns": 7,
        "media_errors": 2,
        "warm_seconds": 240,
        "hot_seconds": 60,
        "throttlings": (8, 6),
        "throttled_seconds": (90, 30),
    }


@pytest.mark.parametrize(("used", "ratio"), [(0, 0.0), (100, 1.0), (104, 1.04), (255, 2.55)])
def test_wear_goes_past_the_rating_and_stops_at_255_percent(used, ratio):
    assert parse(page(used=used)).wear_ratio == ratio


@pytest.mark.parametrize(("bit", "name"), list(enumerate(WARNINGS)))
def test_each_bit_is_one_warning(bit, name):
    assert parse(page(warning=1 << bit)).warnings == (name,)


def test_reserved_bits_are_no_warning():
    assert parse(page(warning=0b1100_0000)).warnings == ()


def test_what_is_out_of_the_specification_or_not_reported_is_not_told():
    health = parse(page(kelvin=0, spare=101, threshold=255))
    assert (health.spare_ratio, health.spare_threshold_ratio, health.temperatures) == (None, None, ())
    assert (health.read_bytes, health.written_bytes) == (None, None)


def test_counters_of_sixteen_bytes_hold_their_most():
    health = parse(page(media_errors=MOST, data_units_written=MOST, power_on_hours=MOST))
    assert health.media_errors == MOST
    assert health.written_bytes == MOST * 512_000
    assert math.isfinite(float(health.written_bytes))


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (b"", Malformed),
        (page()[:511], Malformed),
        (page() + b"\0", Malformed),
        (b"\xff" * 512, Malformed),
        (bytes(512), Unsupported),
    ],
    ids=["nothing", "a byte short", "a byte long", "all ones: the device is gone", "all zero: it keeps no log"],
)
def test_what_is_no_page_is_refused(block, error):
    with pytest.raises(error):
        parse(block)


@given(st.binary(min_size=512, max_size=512) | st.binary(max_size=600))
def test_any_bytes_are_a_reading_or_a_source_error(block):
    try:
        health = parse(block)
    except SourceError:
        return
    assert 0 <= health.wear_ratio <= 2.55
    assert health.spare_ratio is None or 0 <= health.spare_ratio <= 1
    numbers = [value for value in asdict(health).values() if isinstance(value, int | float)]
    assert all(value >= 0 and math.isfinite(float(value)) for value in numbers)


@pytest.fixture
def root(tmp_path):
    return plant(tmp_path, {"dev/nvme0": "", "sys/class/nvme/nvme0/state": "live\n"})


def test_the_command_asks_for_the_whole_page_and_sets_no_timeout_of_its_own(root):
    """A timeout on an admin command has the kernel reset the controller: it must stay the kernel's."""
    seen = []

    def ioctl(descriptor, request, argument):
        seen.append((request, struct.unpack(ADMIN_COMMAND, argument)))
        return Controllers(nvme0=page(used=7))(descriptor, request, argument)

    assert read(root, "nvme0", ioctl).wear_ratio == 0.07
    ((request, fields),) = seen
    assert request == 0xC0484E41
    opcode, _, _, namespace = fields[:4]
    length, cdw10, timeout = fields[9], fields[10], fields[16]
    assert (opcode, namespace, length, cdw10, timeout) == (0x02, 0xFFFFFFFF, 512, 0x007F0002, 0)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (OSError(errno.EACCES, "Permission denied"), Denied, "grant CAP_SYS_ADMIN"),
        (OSError(errno.EPERM, "Operation not permitted"), Denied, "grant CAP_SYS_ADMIN"),
        (OSError(errno.ENOTTY, "Inappropriate ioctl"), Unsupported, "takes no admin command"),
        (OSError(errno.ENODEV, "No such device"), Gone, "No such device"),
        (OSError(errno.EINTR, "Interrupted system call"), Transient, "Interrupted"),
        (0x4109, Unsupported, "keeps no health log"),
        (0x0002, Unsupported, "keeps no health log"),
        (0x0006, Transient, "NVMe status 0x6"),
        (0x0371, Transient, "NVMe status 0x371"),
    ],
    ids=[
        "no capability", "seccomp", "not a controller", "pulled", "reset by the kernel", "no such log",
        "invalid field", "internal error", "aborted",
    ],
)  # fmt: skip
def test_what_a_controller_or_the_kernel_refuses_is_an_error_of_its_kind(root, answer, error, text):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(error, match=text):
        read(root, "nvme0", Controllers(nvme0=answer))
    assert len(os.listdir("/proc/self/fd")) == len(before), "the device is closed again"


def test_a_node_that_may_not_be_opened_says_what_to_grant(root, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(Denied, match="grant read access to the device node"):
        read(root, "nvme0", Controllers())


def test_a_node_that_is_not_there_is_absent(root):
    with pytest.raises(Absent, match="dev/nvme1"):
        read(root, "nvme1", Controllers())


def test_the_kernels_own_ioctl_refuses_a_plain_file(root):
    with pytest.raises(Unsupported):
        read(root, "nvme0")


@pytest.mark.parametrize("state", ["resetting", "connecting", "dead"])
def test_a_controller_that_takes_no_commands_is_not_asked(root, state, tmp_path):
    (tmp_path / "sys/class/nvme/nvme0/state").write_text(f"{state}\n")
    controllers = Controllers()
    with pytest.raises(Unavailable, match=state):
        read(root, "nvme0", controllers)
    assert controllers.asked == []


class Bench:
    """A host with so many drives, and its reader."""

    def __init__(self, folder, drives=3):
        self.folder, self.clock, self.controllers = folder, FakeClock(), Controllers()
        for number in range(drives):
            self.add(f"nvme{number}")
        self.reader = DriveReader(plant(folder, {}), 60.0, self.clock, self.controllers)

    def add(self, name, transport="pcie"):
        files = {f"dev/{name}": "", f"sys/class/nvme/{name}/state": "live"}
        plant(self.folder, files | {f"sys/class/nvme/{name}/transport": transport})

    def look(self, after=0.0):
        self.clock.time += after
        return {report.device: report for report in self.reader.look()}


def test_each_drive_is_asked_once_an_interval(tmp_path):
    bench = Bench(tmp_path)
    assert {name: report.answer for name, report in bench.look().items()} == dict.fromkeys(
        ("nvme0", "nvme1", "nvme2"), parse(page())
    )
    assert bench.look(59.0) == {}
    assert set(bench.look(1.0)) == {"nvme0", "nvme1", "nvme2"}
    assert len(bench.controllers.asked) == 6


def test_one_drives_failure_leaves_its_siblings_answers(tmp_path):
    bench = Bench(tmp_path)
    bench.controllers.answers["nvme1"] = OSError(errno.ENODEV, "No such device")
    found = bench.look()
    assert isinstance(found["nvme1"].answer, Gone)
    assert found["nvme0"].answer == found["nvme2"].answer == parse(page())


def test_a_silent_drive_delays_no_other_and_is_asked_no_second_time(tmp_path):
    bench = Bench(tmp_path)
    answers = bench.controllers.hanging["nvme1"] = threading.Event()
    begin = time.monotonic()
    found = bench.look()
    assert time.monotonic() - begin < 1.0
    assert found["nvme0"].answer == found["nvme2"].answer == parse(page())
    assert found["nvme1"] == Report("nvme1", 1000.0)
    found = bench.look(150.0)
    assert found["nvme0"].answer
    assert found["nvme2"].answer
    assert found["nvme1"] == Report("nvme1", 1000.0), "asked at the same time as ever"
    assert bench.controllers.asked.count("nvme1") == 1
    assert [thread.name for thread in threading.enumerate()].count("nvme1") == 1
    answers.set()
    deadline = time.monotonic() + 5
    while (report := bench.look()["nvme1"]).answer is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (report.asked_at, report.answered_at, report.answer) == (1000.0, 1150.0, parse(page()))
    assert bench.look()["nvme1"].asked_at == 1150.0, "then it is due"


def test_a_drive_that_is_added_is_asked_at_once_and_one_that_is_pulled_no_more(tmp_path):
    bench = Bench(tmp_path)
    bench.look()
    bench.add("nvme9")
    shutil.rmtree(tmp_path / "sys/class/nvme/nvme0")
    assert set(bench.look(2.0)) == {"nvme9"}
    assert set(bench.look(60.0)) == {"nvme1", "nvme2", "nvme9"}


@pytest.mark.parametrize("before", [[], ["nvme0"]], ids=["plugged in", "reset while it runs"])
def test_a_drive_whose_controller_is_not_up_yet_is_asked_as_soon_as_it_is(tmp_path, before):
    bench = Bench(tmp_path, drives=1)
    assert list(bench.look() if before else ()) == before
    plant(tmp_path, {"sys/class/nvme/nvme0/state": "resetting"})
    assert bench.look(2.0) == {}, "no fault and no question"
    plant(tmp_path, {"sys/class/nvme/nvme0/state": "live"})
    assert bench.look(2.0)["nvme0"].answer == parse(page())
    assert bench.look(2.0) == {}, "and once only"
    assert bench.controllers.asked == [*before, "nvme0"]


def test_a_drive_whose_controller_does_not_come_up_is_said_not_to_be_available(tmp_path):
    bench = Bench(tmp_path, drives=1)
    plant(tmp_path, {"sys/class/nvme/nvme0/state": "connecting"})
    assert bench.look() == bench.look(9.0) == {}
    assert isinstance(bench.look(1.0)["nvme0"].answer, Unavailable)
    assert bench.look(2.0) == {}, "once an interval"


def test_another_drive_that_got_the_name_between_two_looks_is_asked_at_once(tmp_path):
    bench = Bench(tmp_path, drives=1)
    bench.controllers.hanging["nvme0"] = threading.Event()
    assert bench.look()["nvme0"].answer is None
    folder = tmp_path / "sys/class/nvme/nvme0"
    folder.rename(tmp_path / "pulled")  # keeps its number from being given again
    del bench.controllers.hanging["nvme0"]
    bench.add("nvme0")
    assert bench.look(2.0)["nvme0"] == Report("nvme0", 1002.0, 1002.0, parse(page())), "though the first one is silent"


def test_a_drive_that_is_pulled_while_it_is_silent_is_not_told_of(tmp_path):
    bench = Bench(tmp_path, drives=1)
    answers = bench.controllers.hanging["nvme0"] = threading.Event()
    bench.look()
    shutil.rmtree(tmp_path / "sys/class/nvme/nvme0")
    assert bench.look(2.0) == {}
    answers.set()


def test_drives_over_a_network_are_never_asked(tmp_path):
    bench = Bench(tmp_path, drives=1)
    bench.add("nvme7", transport="tcp")
    assert set(bench.look()) == {"nvme0"}
    assert set(bench.look(600.0)) == {"nvme0"}


HEALTH = parse(page())


def test_what_was_read_stays_while_the_drive_is_silent_or_fails():
    known = DriveHealth()
    assert known.state()[0] == "starting"
    known.put([Report("nvme0", 10.0, 10.1, HEALTH)])
    known.put([Report("nvme0", 70.0)])
    told = known.told("nvme0")
    assert (told.health, told.read_at, told.asked_at, told.failure) == (HEALTH, 10.1, 70.0, None)
    failure = Transient("no")
    known.put([Report("nvme0", 70.0, 130.0, failure)])
    told = known.told("nvme0")
    assert (told.health, told.read_at, told.asked_at, told.failure) == (HEALTH, 10.1, None, failure)
    known.put([Report("nvme0", 140.0, 140.1, HEALTH)])
    assert known.told("nvme0").failure is None


def test_a_reader_that_ends_waits_for_no_drive_any_more():
    known = DriveHealth()
    known.put([Report("nvme0", 10.0)])
    known.fail("unavailable", "the reader ended")
    assert known.state() == ("unavailable", "the reader ended")
    assert known.told("nvme0").asked_at is None
    known.put([])
    assert known.state() == ("ok", "")


def test_a_drive_that_left_leaves_nothing_for_the_next_of_its_name():
    known = DriveHealth()
    known.put([Report("nvme0", 10.0, 10.1, HEALTH), Report("nvme1", 10.0, 10.1, HEALTH)])
    known.keep(["nvme1"])
    assert known.told("nvme0").health is None
    assert known.told("nvme1").health == HEALTH


def test_temperatures_are_those_of_the_monitors_names():
    assert parse(page(kelvin=300)).temperatures == (Temperature("composite", 26.85),)
