"""What a training script marks, as the exporter hears it; and that marking never holds the script up."""

from __future__ import annotations

import ast
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpuhost_marker
from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources import marker
from gpuhost_exporter.sources.marker import Mark, Marker, parse

FLOOD = """
import socket, sys, time
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
until = time.monotonic() + 1.5
while time.monotonic() < until:
    sender.sendto(b"gpuhost/1 checkpoint start 1 0 flood", sys.argv[1])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    # Unix sockets' paths end at 107 bytes; pytest's folders may be longer.
    short = tmp_path if len(str(tmp_path)) < 80 else Path(f"/tmp/gpuhost-marker-{os.getpid()}-{time.monotonic_ns()}")
    monkeypatch.setenv(gpuhost_marker.VARIABLE, str(short / "marker" / "socket"))
    return short


@pytest.fixture
def listen(folder):
    started = []

    def start():
        started.append(Marker(str(folder), SystemClock()))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.close()


def taken(heard, count):
    found = heard.take()
    deadline = time.monotonic() + 5
    while len(found) < count:
        assert time.monotonic() < deadline, (found, heard.counts)
        time.sleep(0.01)
        found += heard.take()
    return found


def send(folder, data, *ancillary):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendmsg([data], ancillary, 0, str(folder / "marker" / "socket"))


def test_a_checkpoint_has_its_start_its_end_its_length_and_who_marked_it(listen):
    heard = listen()
    assert heard.reason == ""
    before = SystemClock().now()
    with gpuhost_marker.checkpoint("step-500 of 2000"):
        time.sleep(0.05)
    start, end = taken(heard, 2)
    assert (start.pid, start.name, start.seconds) == (os.getpid(), "step-500 of 2000", None)
    assert (end.pid, end.name, end.serial) == (os.getpid(), "step-500 of 2000", start.serial)
    assert end.seconds == pytest.approx(0.05, abs=0.03)
    assert before <= start.at <= before + 0.05 <= end.at
    assert end.at - start.at == pytest.approx(end.seconds, abs=0.02)


def test_an_error_within_ends_it_and_goes_on(listen):
    heard = listen()
    with pytest.raises(RuntimeError, match="disk full"), gpuhost_marker.checkpoint():
        raise RuntimeError("disk full")
    assert [mark.seconds is None for mark in taken(heard, 2)] == [True, False]


@pytest.mark.parametrize("name", ["", "x" * 1000, "a\nb\0c", "\udcff", "né" * 80, None, 7, b"raw"])
def test_any_name_is_sent_and_none_fails(listen, name):
    heard = listen()
    with gpuhost_marker.checkpoint(name):
        pass
    marks = taken(heard, 2)
    assert all(len(mark.name) <= 128 and mark.name.isprintable() for mark in marks)
    assert not heard.counts


@pytest.mark.parametrize("path", ["/nonexistent/socket", "/", "/etc/passwd", "x" * 200, "a\0b"])
def test_where_nobody_listens_nothing_happens(monkeypatch, path):
    monkeypatch.setattr(gpuhost_marker, "SOCKET", path)
    monkeypatch.delenv(gpuhost_marker.VARIABLE, raising=False)
    with gpuhost_marker.checkpoint("step-1"):
        pass


def test_a_queue_that_is_full_holds_nobody_up(folder):
    (folder / "marker").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(folder / "marker" / "socket"))
        began = time.monotonic()
        for _ in range(2000):
            with gpuhost_marker.checkpoint("step"):
                pass
        assert time.monotonic() - began < 2.0, "25 us each, and none of them waits"


def test_nor_does_it_where_the_training_has_set_a_timeout_for_its_sockets(folder):
    (folder / "marker").mkdir(parents=True)
    path = str(folder / "marker" / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling, contextlib.suppress(BlockingIOError):
            filling.setblocking(False)
            while True:
                filling.sendto(b"", path)
        socket.setdefaulttimeout(1.0)
        try:
            began = time.monotonic()
            with gpuhost_marker.checkpoint("step"):
                pass
            assert time.monotonic() - began < 0.5, "Python waits that long for each call that would block"
        finally:
            socket.setdefaulttimeout(None)


@pytest.mark.parametrize("absent", ["SOCK_CLOEXEC", "MSG_DONTWAIT", "AF_UNIX", "SOCK_DGRAM"])
def test_what_other_systems_do_not_have_does_not_stop_the_training(monkeypatch, absent):
    monkeypatch.delattr(socket, absent)
    ran = False
    with gpuhost_marker.checkpoint("step"):
        ran = True
    assert ran


def test_a_system_without_linux_own_flags_is_heard_too(listen, monkeypatch):
    heard = listen()
    monkeypatch.delattr(socket, "SOCK_CLOEXEC")
    monkeypatch.delattr(socket, "MSG_DONTWAIT")
    with gpuhost_marker.checkpoint("step"):
        pass
    taken(heard, 2)


def test_a_name_that_cannot_be_read_does_not_stop_the_training():
    class Broken(str):
        __slots__ = ()

        def __getitem__(self, _):
            raise RuntimeError

    with gpuhost_marker.checkpoint(Broken("step")):
        pass


def test_one_says_whether_its_process_has_another_open(listen):
    heard = listen()
    with gpuhost_marker.checkpoint("outer"), gpuhost_marker.checkpoint("inner"):
        pass
    with pytest.raises(RuntimeError), gpuhost_marker.checkpoint("fails"):
        raise RuntimeError
    with gpuhost_marker.checkpoint("next"):
        pass
    marks = taken(heard, 8)
    assert [(mark.name, mark.alone) for mark in marks if mark.seconds is None] == [
        ("outer", True), ("inner", False), ("fails", True), ("next", True),
    ]  # fmt: skip
    assert not any(mark.alone for mark in marks if mark.seconds is not None)


def test_no_socket_is_left_open_in_the_training(listen):
    listen()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with gpuhost_marker.checkpoint():
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_script_may_outlive_the_exporter_and_meet_the_next(listen):
    first = listen()
    with gpuhost_marker.checkpoint("a"):
        taken(first, 1)
        first.close()
    with gpuhost_marker.checkpoint("b"):
        pass
    second = listen()
    with gpuhost_marker.checkpoint("c"):
        pass
    assert {mark.name for mark in taken(second, 2)} == {"c"}


def test_the_socket_of_an_exporter_that_was_killed_is_replaced_and_that_of_a_living_one_is_not(listen, folder):
    (folder / "marker").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as killed:
        killed.bind(str(folder / "marker" / "socket"))
    first, second = listen(), listen()
    assert first.reason == ""
    assert "another gpuhost-exporter" in second.reason
    with gpuhost_marker.checkpoint():
        pass
    taken(first, 2)
    assert os.stat(first.path).st_mode & 0o777 == 0o666, "other users' jobs may send"


def test_a_folder_that_cannot_be_made_is_said_and_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    heard = Marker(str(tmp_path / "file"), SystemClock())
    heard.start()
    assert "Not a directory" in heard.reason
    assert heard.take() == []
    heard.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\0",
        b"x" * 650,
        b"x" * 5000,
        b"gpuhost/1 checkpoint start 1 0",
        b"gpuhost/2 checkpoint start 1 0 x",
        b"gpuhost/1 checkpoint middle 1 0 x",
        b"gpuhost/1 checkpoint end one 0 x",
        b"gpuhost/1 checkpoint end 1 nan x",
        b"gpuhost/1 checkpoint end 1 -1 x",
        b"gpuhost/1 checkpoint end 1 1e9 x",
        b"gpuhost/1 checkpoint end " + b"9" * 400 + b" 1 x",
    ],
)
def test_garbage_is_counted_and_what_follows_is_heard(listen, folder, data):
    heard = listen()
    send(folder, data)
    with gpuhost_marker.checkpoint("after"):
        pass
    assert {mark.name for mark in taken(heard, 2)} == {"after"}
    assert heard.counts == {"malformed": 1}


def test_descriptors_that_somebody_sends_along_are_not_taken(listen, folder):
    heard = listen()
    with open("/dev/null", "rb") as file:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, file.fileno().to_bytes(4, sys.byteorder) * 20)
        send(folder, b"gpuhost/1 checkpoint start 1 0 x", rights)
        taken(heard, 1)
        before = len(os.listdir("/proc/self/fd"))
        send(folder, b"gpuhost/1 checkpoint start 2 0 x", rights)
        taken(heard, 1)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_flood_of_one_process_is_bounded_and_leaves_room_for_another(listen, folder):
    heard = listen()
    flood = subprocess.Popen(
        [
            sys.executable,
            "-c",
            FLOOD,
            str(folder / "marker" / "socket"),
        ]
    )
    cpu = time.process_time()
    flood.wait(10)
    cpu = time.process_time() - cpu
    marks = heard.take()
    assert 0 < len(marks) <= 4 * marker.MOST_OF_ONE, "each of the 1.5 s lets this many by"
    assert heard.counts["limited"] <= 4 * marker.MOST_A_SECOND
    assert cpu < 0.3
    time.sleep(1.1)
    with gpuhost_marker.checkpoint("mine"):
        pass
    assert [mark for mark in taken(heard, 2) if mark.name == "mine"]


@given(st.binary(max_size=800))
def test_any_bytes_are_a_mark_or_malformed(data):
    try:
        mark = parse(data, 1.0, 2)
    except Malformed:
        return
    assert isinstance(mark, Mark)


@given(st.integers(0, 10**19), st.floats(0, 86400), st.text(max_size=200))
def test_what_is_sent_is_what_is_parsed(serial, seconds, name):
    data = f"gpuhost/1 checkpoint end {serial} {seconds:.6f} {name}".encode("utf-8", "replace")
    mark = parse(data, 1.0, 2)
    assert (mark.serial, mark.seconds) == (serial, pytest.approx(seconds, abs=1e-6))
    assert len(mark.name) <= 128


def test_the_script_s_side_is_one_file_for_python_3_8():
    tree = ast.parse(Path(gpuhost_marker.__file__).read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    # With this one annotations are not evaluated: else list[...] and X | Y would fail there.
    assert "__future__" in imported
    assert imported <= {"__future__", "os", "socket", "time", "types"}
