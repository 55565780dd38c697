"""What the service manager hears, and that nobody hears anything where there is none."""

from __future__ import annotations

import socket

import pytest

from gpuhost_exporter.sources.systemd import ServiceManager


@pytest.fixture
def heard(tmp_path):
    """(address, function that returns what has come)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"{tmp_path}/notify")
        listener.setblocking(False)

        def take() -> list[str]:
            found = []
            while True:
                try:
                    found.append(listener.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield f"{tmp_path}/notify", take


def test_ready_alive_and_stopping_are_told(heard):
    address, take = heard
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 7)
    manager.ready("listening on :19400")
    manager.alive()
    manager.stopping()
    assert take() == ["READY=1\nSTATUS=listening on :19400", "WATCHDOG=1", "STOPPING=1"]


def test_an_abstract_address_begins_with_a_zero_byte():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0gpuhost-test-notify")
        ServiceManager({"NOTIFY_SOCKET": "@gpuhost-test-notify"}, 7).stopping()
        listener.settimeout(1)
        assert listener.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": ""}],
    ids=["no watchdog", "another process's", "no number", "empty"],
)
def test_without_a_watchdog_of_ours_it_is_not_told_and_nobody_hurries(heard, environment):
    address, take = heard
    manager = ServiceManager({"NOTIFY_SOCKET": address, **environment}, 7)
    manager.alive()
    assert take() == []
    assert manager.pause(5.0) == 5.0


def test_the_watchdog_hears_of_us_twice_in_its_time():
    assert ServiceManager({"WATCHDOG_USEC": "4000000"}, 7).pause(5.0) == 2.0
    assert ServiceManager({"WATCHDOG_USEC": "60000000"}, 7).pause(5.0) == 5.0


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "relative"], ids=["none", "gone", "odd"])
def test_a_manager_that_cannot_be_reached_is_no_failure(address):
    ServiceManager({"NOTIFY_SOCKET": address}, 7).ready("listening")
