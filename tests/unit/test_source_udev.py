"""Device events: what is handed on, and what happens where there are none."""

from __future__ import annotations

import errno
import logging
import sys
import threading
from types import SimpleNamespace

import pytest

from gpuhost_exporter.errors import Absent, Denied, Transient
from gpuhost_exporter.sources import udev
from gpuhost_exporter.sources.udev import Event, UdevWatcher

REMOVED = Event("remove", "nvme", "nvme0")


class FakeMonitor:
    """pyudev's Monitor, with a script of what poll returns or raises."""

    def __init__(self, script):
        self.script = list(script)
        self.subsystems = []
        self.started = False

    def filter_by(self, subsystem):
        self.subsystems.append(subsystem)

    def start(self):
        self.started = True

    def poll(self):
        step = self.script.pop(0)
        if isinstance(step, OSError):
            raise step
        return step


def fake_pyudev(monkeypatch, monitor):
    sources = []

    def from_netlink(context, source):
        sources.append(source)
        if isinstance(monitor, OSError):
            raise monitor
        return monitor

    module = SimpleNamespace(Context=lambda: None, Monitor=SimpleNamespace(from_netlink=from_netlink))
    monkeypatch.setitem(sys.modules, "pyudev", module)
    return sources


def device(action: str, subsystem: str, name: str) -> SimpleNamespace:
    return SimpleNamespace(action=action, subsystem=subsystem, sys_name=name)


def test_events_are_handed_on_in_order_from_another_thread():
    got, done = [], threading.Event()

    def deliver(*event):
        got.append((*event, threading.current_thread().name))
        if len(got) == 2:
            done.set()

    UdevWatcher(deliver, lambda: [REMOVED, Event("add", "block", "nvme1n1")]).start()
    assert done.wait(5)
    assert got == [("remove", "nvme", "nvme0", "udev"), ("add", "block", "nvme1n1", "udev")]


def test_a_stream_that_cannot_be_opened_is_said_once_and_ends_the_thread(caplog):
    def refuse():
        raise Absent("no libudev here")

    watcher = UdevWatcher(lambda *event: pytest.fail("nothing to deliver"), refuse)
    with caplog.at_level(logging.WARNING):
        watcher.start()
        watcher._thread.join(5)
    assert [record.getMessage() for record in caplog.records] == [
        "devices that come or go are seen at the next poll only: no libudev here (absent)"
    ]


def test_without_pyudev_or_libudev_it_is_absent_and_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyudev", None)
    with pytest.raises(Absent, match="libudev"):
        udev.listen()


def test_a_netlink_socket_that_is_refused_is_denied(monkeypatch):
    fake_pyudev(monkeypatch, OSError(errno.EPERM, "Operation not permitted"))
    with pytest.raises(Denied):
        udev.listen()


def test_the_kernels_own_events_of_four_subsystems_are_asked_for(monkeypatch):
    monitor = FakeMonitor([device("remove", "nvme", "nvme0"), None, device("add", "pci", "0000:18:00.0")])
    sources = fake_pyudev(monkeypatch, monitor)
    events = udev.listen()
    assert next(events) == REMOVED
    assert next(events) == Event("add", "pci", "0000:18:00.0")
    assert sources == ["kernel"]
    assert monitor.subsystems == ["nvme", "block", "pci", "infiniband"]
    assert monitor.started


def test_events_go_on_after_a_burst_that_overran_the_socket(monkeypatch):
    fake_pyudev(monkeypatch, FakeMonitor([OSError(errno.ENOBUFS, "overrun"), device("remove", "nvme", "nvme0")]))
    assert next(udev.listen()) == REMOVED


def test_a_socket_that_breaks_ends_the_events_with_an_error(monkeypatch):
    fake_pyudev(monkeypatch, FakeMonitor([OSError(errno.EBADF, "Bad file descriptor")]))
    with pytest.raises(Transient, match="Bad file descriptor"):
        next(udev.listen())
