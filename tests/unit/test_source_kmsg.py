"""NVIDIA's errors in the kernel log: what is recognised, what is not, and where reading goes on."""

from __future__ import annotations

import errno
import os
import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeClock

from gpuhost_exporter.errors import Absent, Denied, Malformed, Transient
from gpuhost_exporter.sources.files import Root
from gpuhost_exporter.sources.kmsg import (
    KernelLog,
    KernelLogReader,
    LoggedKill,
    LoggedSxid,
    LoggedXid,
    Recogniser,
    Record,
    parse_record,
)
from gpuhost_exporter.sources.state import State

BOOT = "0c5cf19e-8a4b-4b5e-9bd3-2f0b3f7a9d11"
UUID = "GPU-b6c3b2be-c55b-d076-fa0e-d464e4c7e08b"
XID_79 = "NVRM: Xid (PCI:0000:91:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
AT_START = (
    r"NVRM: The NVIDIA GPU 0000:91:00.0\x0aNVRM: (PCI ID: 10de:2330) installed in this system has\x0a"
    r"NVRM: fallen off the bus and is not responding to commands."
)


def recognise(*texts):
    recogniser = Recogniser(BOOT)
    return [recogniser.event(parse_record(f"4,{number},5,-;{text}"), 100.0) for number, text in enumerate(texts)][-1]


@pytest.mark.parametrize(
    ("text", "bdf", "code", "rest"),
    [
        (XID_79, "0000:91:00", 79, "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),
        (
            "NVRM: Xid (PCI:0000:65:00): 48, pid=12, DBE (double bit error)",
            "0000:65:00",
            48,
            "pid=12, DBE (double bit error)",
        ),
        (
            "NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: CE",
            "0000:01:00",
            94,
            "pid=7194, Contained: CE",
        ),
        ("NVRM: Xid (PCI:0000:3b:00 GPU-I:01 GPU-CI:02): 13, pid=9, name=a", "0000:3b:00", 13, "pid=9, name=a"),
        ("NVRM: Xid (0000:03:00): 14, Channel 00000001", "0000:03:00", 14, "Channel 00000001"),
        ("NVRM: Xid (PCI:0000:B3:00.0): 79", "0000:b3:00", 79, ""),
        ("NVRM: Xid (PCI:00000018:01:00): 149, NETIR  Fatal   XC0", "0018:01:00", 149, "NETIR  Fatal   XC0"),
        ("NVRM: Xid (PCI:10000:01:00): 31, x", "10000:01:00", 31, "x"),
    ],
    ids=["unknown process", "pid", "MIG", "MIG compute instance", "no PCI", "function", "long domain", "VMD domain"],
)
def test_an_xid_line_in_each_form_the_driver_prints(text, bdf, code, rest):
    assert recognise(text) == LoggedXid(BOOT, 0, 100.0, bdf, None, code, rest, inferred=False)


@pytest.mark.parametrize(
    "text",
    [
        "NVRM: GPU 0000:91:00.0: GPU has fallen off the bus.",
        "NVRM: GPU at PCI:0000:91:00: GPU has fallen off the bus",
        AT_START,
    ],
)
def test_a_gpu_off_the_bus_without_an_xid_is_inferred_as_79(text):
    assert recognise(text) == LoggedXid(BOOT, 0, 100.0, "0000:91:00", None, 79, "", inferred=True)


@pytest.mark.parametrize(("word", "fatal"), [("Fatal", True), ("Non-fatal", False)])
def test_an_sxid_line_says_itself_whether_it_is_fatal(word, fatal):
    text = f"nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, {word}, Link 32 egress non-posted PRIV error (First)"
    assert recognise(text) == LoggedSxid(BOOT, 0, 100.0, 12028, fatal)


@pytest.mark.parametrize(
    "text",
    [
        "nvidia-nvswitch3: SXid (PCI:0000:08:00.0): 22013, Severity 0 Engine instance 60 Sub-engine instance 00",
        "nvidia-nvswitch3: SXid (PCI:0000:08:00.0): 22013, Data {0x00000006, 0x00000000}",
        "NVRM: Xid (PCI:0000:66:00): abc, pid=2280636",
        "NVRM: Xid (PCI:0000:66:00): 12345678, pid=1",
        "NVRM: GPU Board Serial Number: 1653723052734",
        "NVRM: GPU 0000:91:00.0: GPU serial number is 1653723052734.",
        "python[1234]: segfault, as in NVRM: Xid (PCI:0000:65:00): 79, told by somebody else",
        "usb 1-1: device has fallen off the bus",
    ],
)
def test_what_is_no_event_of_its_own_is_passed_over(text):
    assert recognise(text) is None


def test_the_uuid_that_the_log_names_for_an_address_goes_with_its_events():
    named = f"NVRM: GPU at PCI:0000:91:00: {UUID}"
    assert recognise(named, XID_79).uuid == UUID
    assert recognise(named, XID_79.replace("91:00", "92:00")).uuid is None


def test_a_record_is_read_with_newer_fields_and_escapes():
    line = r"6,1523,6781741548779,-,caller=T12;a\x0ab \x5c;c"
    assert parse_record(line) == Record(1523, 6781741.548779, "a\nb \\;c")


@pytest.mark.parametrize(
    "line", ["", "text", "4,1,2", "4,1;x", "4,x,2,-;x", "-4,1,2,-;x", f"4,{'9' * 30},2,-;x", "4,²,2,-;x"]
)
def test_a_broken_record_is_malformed(line):
    with pytest.raises(Malformed, match="kmsg: "):
        parse_record(line)


@given(st.text() | st.builds("4,{},{},-;NVRM: Xid (PCI:{}): {}, {}".format, *[st.text("0123456789:.,; ")] * 5))
def test_no_line_brings_the_parser_down(line):
    try:
        record = parse_record(line)
    except Malformed:
        return
    event = Recogniser(BOOT).event(record, 0.0)
    assert event is None or event.sequence == record.sequence


@given(st.lists(st.text(st.characters(blacklist_characters="\n"))))
def test_a_log_of_any_text_still_tells_the_event_after_it(tmp_path_factory, lines):
    log = Log(tmp_path_factory.mktemp("root"))
    log.path.write_bytes("\n".join(lines).encode("utf-8", "replace") + b"\n")
    log.append(7, XID_79)
    assert [event.code for event in log.reader().read_new()][-1:] == [79]


class Log:
    """A simulated host's /dev/kmsg: a file that grows."""

    def __init__(self, folder, boot=BOOT):
        self.root = Root.below(str(folder))
        self.clock = FakeClock()
        self.path = folder / "dev/kmsg"
        self.path.parent.mkdir(parents=True)
        self.path.touch()
        boot_id = folder / "proc/sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True)
        boot_id.write_text(f"{boot}\n")

    def append(self, sequence, text=XID_79, seconds=10.0):
        with self.path.open("a") as file:
            file.write(f"4,{sequence},{int(seconds * 1e6)},-;{text}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:91:00.0\n")

    def reader(self, cursor=None):
        return KernelLogReader(self.root, cursor, self.clock)


def sequences(events):
    return [event.sequence for event in events]


def test_what_was_logged_before_the_start_is_read_and_then_what_is_new(tmp_path):
    log = Log(tmp_path)
    log.append(3)
    log.append(4, "usb 1-1: new device")
    reader = log.reader()
    assert sequences(reader.read_new()) == [3]
    assert reader.read_new() == ()
    log.append(5)
    assert sequences(reader.read_new()) == [5]


@pytest.mark.parametrize(
    ("cursor", "told"),
    [((BOOT, 3), [4]), ((BOOT, 9), []), (("another boot", 3), [3, 4]), (None, [3, 4])],
    ids=["after the cursor", "all taken", "cursor of another boot", "no cursor"],
)
def test_reading_goes_on_after_the_cursor_of_this_boot(tmp_path, cursor, told):
    log = Log(tmp_path)
    log.append(3)
    log.append(4)
    assert sequences(log.reader(cursor).read_new()) == told


def test_a_record_that_is_half_written_waits_for_its_other_half(tmp_path):
    log = Log(tmp_path)
    reader = log.reader()
    whole = f"4,3,5,-;{XID_79}\n"
    log.path.write_text(whole[:40])
    assert reader.read_new() == ()
    with log.path.open("a") as file:
        file.write(whole[40:])
    assert [event.code for event in reader.read_new()] == [79]


def test_wall_time_is_the_boots_plus_the_records(tmp_path):
    log = Log(tmp_path)
    log.append(3, seconds=200.0)
    log.clock.wall = lambda: 1_700_000_000.0
    assert log.reader().read_new()[0].wall == pytest.approx(1_700_000_000 - 1000 + 200)


def test_a_record_that_just_came_bears_the_present_time_when_the_kernels_clock_has_drifted(tmp_path):
    log = Log(tmp_path)
    reader = log.reader()
    reader.read_new()
    log.append(3, seconds=log.clock.now() - 30)
    log.append(4, seconds=log.clock.now() - 2)
    assert [event.wall for event in reader.read_new()] == [log.clock.now(), log.clock.now() - 2]


def test_overwritten_records_are_skipped_and_reading_goes_on(tmp_path, monkeypatch):
    log = Log(tmp_path)
    log.append(3)
    answers = [OSError(errno.EPIPE, "Broken pipe"), OSError(errno.EPIPE, "Broken pipe")]
    real = os.read

    def read(descriptor, size):
        if answers:
            raise answers.pop()
        return real(descriptor, size)

    monkeypatch.setattr(os, "read", read)
    assert sequences(log.reader().read_new()) == [3]


def test_eagain_means_nothing_now(tmp_path, monkeypatch):
    log = Log(tmp_path)
    monkeypatch.setattr(os, "read", lambda *_: (_ for _ in ()).throw(BlockingIOError(errno.EAGAIN, "again")))
    assert log.reader().read_new() == ()


def test_a_failing_read_is_told_and_the_next_call_starts_over(tmp_path, monkeypatch):
    log = Log(tmp_path)
    log.append(3)
    reader = log.reader()
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(Transient, match="/dev/kmsg: Input/output error"):
            reader.read_new()
    assert sequences(reader.read_new()) == [3]
    reader.close()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_a_closed_log_names_the_capability_and_the_setting(tmp_path, monkeypatch, number):
    log = Log(tmp_path)
    reader = log.reader()
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.raises(Denied, match=r"CAP_SYSLOG.*kernel\.dmesg_restrict"):
        reader.read_new()


def test_a_host_without_a_kernel_log_says_so(tmp_path):
    with pytest.raises(Absent, match="/dev/kmsg"):
        KernelLogReader(Root.below(str(tmp_path)), None, FakeClock()).read_new()


def test_events_cross_the_readers_pipe_whole():
    for found in (recognise(XID_79), event(3)):
        assert pickle.loads(pickle.dumps(found)) == found


def event(sequence, boot=BOOT):
    return LoggedSxid(boot, sequence, 100.0, 12028, fatal=False)


def test_the_parent_takes_each_event_once_though_a_new_reader_tells_it_again():
    log = KernelLog()
    log.put((event(3), event(4)))
    log.put((event(3), event(4), event(5)))
    assert sequences(log.take()) == [3, 4, 5]
    assert log.take() == ()
    log.put((event(1, "next boot"),))
    assert sequences(log.take()) == [1]


def test_the_state_of_the_log_follows_its_reader():
    log = KernelLog()
    assert log.state()[0] == "starting"
    log.fail("denied", "no")
    assert log.state() == ("denied", "no")
    log.put(())
    assert log.state() == ("ok", "")


def test_a_reader_started_now_goes_on_after_what_was_put_else_after_what_was_saved(tmp_path):
    state, log = State(str(tmp_path)), KernelLog()
    assert log.cursor(state) is None
    log.save(state, (BOOT, 7))
    state.flush()
    assert KernelLog().cursor(State(str(tmp_path))) == (BOOT, 7)
    log.put((event(9),))
    assert log.cursor(state) == (BOOT, 9)


def test_who_only_looks_is_told_the_whole_log_and_moves_nobodys_cursor(tmp_path):
    state, log = State(str(tmp_path)), KernelLog(resumes=False)
    KernelLog().save(state, (BOOT, 7))
    assert log.cursor(state) is None
    log.save(state, (BOOT, 9))
    assert KernelLog().cursor(state) == (BOOT, 7)
    log.put((event(9),))
    assert log.cursor(state) == (BOOT, 9), "a reader that is started anew need not tell twice"


def test_a_saved_cursor_that_the_disk_does_not_tell_keeps_nobody_else_from_the_log():
    log, reading, told = KernelLog(), threading.Event(), threading.Event()

    class Slow:
        def load(self, name):
            reading.set()
            assert told.wait(5)
            return {"boot_id": BOOT, "sequence": 7}

    found = []
    starting = threading.Thread(target=lambda: found.append(log.cursor(Slow())))
    starting.start()
    assert reading.wait(5)
    log.put((event(9),))
    assert (log.state(), sequences(log.take())) == (("ok", ""), [9])
    told.set()
    starting.join(5)
    assert found == [(BOOT, 7)]


@pytest.mark.parametrize("data", [{"boot_id": 5, "sequence": 3}, {"boot_id": BOOT}, {"boot_id": BOOT, "sequence": "3"}])
def test_a_cursor_in_another_form_is_no_cursor(tmp_path, data):
    state = State(str(tmp_path))
    state.update("kernel_log", lambda _: data)
    assert KernelLog().cursor(state) is None


@pytest.mark.parametrize(
    ("text", "pid", "group"),
    [
        (
            (
                "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=cri-containerd-5f.scope,mems_allowed=0-1,"
                "oom_memcg=/kubepods.slice/pod1.slice,task_memcg=/kubepods.slice/pod1.slice/cri-containerd-5f.scope,"
                "task=pt_data_worker,pid=60123,uid=1000"
            ),
            60123,
            "/kubepods.slice/pod1.slice/cri-containerd-5f.scope",
        ),
        (
            (
                "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0-1,global_oom,"
                "task_memcg=/,task=a,pid=1,b,pid=4711,uid=0"
            ),
            4711,
            "/",
        ),
        ("Memory cgroup out of memory: Killed process 7194 (python) total-vm:9kB, anon-rss:8kB", 7194, None),
        ("Killed process 7194 (python), UID 1000, total-vm:9kB", 7194, None),
    ],
    ids=["in a group", "on the host, a task of that name", "second line", "old kernel"],
)
def test_a_process_killed_for_lack_of_memory_is_told_with_its_group(text, pid, group):
    assert recognise(text) == LoggedKill(BOOT, 0, 100.0, pid, group)


def test_kills_and_errors_of_gpus_come_to_those_who_ask_for_them():
    log = KernelLog()
    xid = LoggedXid(BOOT, 4, 100.0, "0000:91:00", None, 79, "", inferred=False)
    killed = LoggedKill(BOOT, 5, 101.0, 4711, None)
    log.put((xid, killed))
    log.put((killed,))
    assert log.take_kills() == (killed,)
    assert log.take() == (xid,)
    assert (log.take_kills(), log.take()) == ((), ())


def test_kills_are_read_from_the_log_between_other_lines(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").write_text(
        "4,1,1000,-;python invoked oom-killer: gfp_mask=0xcc0\n"
        "4,2,1001,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task_memcg=/job,task=python,pid=4711,uid=0\n"
        " SUBSYSTEM=x\n3,3,1002,-;Memory cgroup out of memory: Killed process 4711 (python)\n"
    )
    found = KernelLogReader(Root.below(str(tmp_path)), None, FakeClock()).read_new()
    assert [(event.sequence, event.pid, event.group) for event in found] == [(2, 4711, "/job"), (3, 4711, None)]
