"""Pressure as samples."""

from __future__ import annotations

import errno
import os

import pytest
from test_source_pressure import FULL, SOME
from trees import fail_opening, host_at, values

from gpuhost_exporter.collectors.pressure import PressureCollector
from gpuhost_exporter.errors import Unsupported

FILES = {f"proc/pressure/{resource}": SOME + FULL for resource in ("cpu", "memory", "io")}
NAME = "pressure_stalled_seconds_total"


def test_each_resource_and_kind_that_means_something_has_a_sample(tmp_path):
    got = values(PressureCollector(host_at(tmp_path, FILES | {"proc/pressure/irq": FULL})).poll(0.0))
    assert got == {
        (NAME, "cpu", "some"): 2.571168,
        (NAME, "memory", "some"): 2.571168,
        (NAME, "memory", "full"): 2.401826,
        (NAME, "io", "some"): 2.571168,
        (NAME, "io", "full"): 2.401826,
        (NAME, "irq", "full"): 2.401826,
    }


@pytest.mark.parametrize(
    ("number", "counted"),
    [(errno.EACCES, {"denied": 1}), (errno.EIO, {"transient": 1}), (errno.EOPNOTSUPP, {})],
    ids=["no permission", "failing", "not supported is no error"],
)
def test_one_resource_that_fails_leaves_the_others(tmp_path, monkeypatch, number, counted):
    collector = PressureCollector(host_at(tmp_path, FILES))
    fail_opening(monkeypatch, "/pressure/io", number)
    assert {key[1] for key in values(collector.poll(0.0))} == {"cpu", "memory"}
    assert collector.errors == counted


def test_a_truncated_file_leaves_the_others(tmp_path):
    collector = PressureCollector(host_at(tmp_path, FILES | {"proc/pressure/io": "some avg10=0."}))
    assert {key[1] for key in values(collector.poll(0.0))} == {"cpu", "memory"}
    assert collector.errors == {"malformed": 1}


def test_pressure_that_is_switched_off_is_unsupported_as_a_whole(tmp_path, monkeypatch):
    collector = PressureCollector(host_at(tmp_path, FILES))
    real = os.open

    def refuse(path, *arguments):
        if "/proc/pressure/" in path:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Unsupported):
        list(collector.poll(0.0))


def test_a_kernel_without_pressure_is_unsupported(tmp_path):
    with pytest.raises(Unsupported):
        list(PressureCollector(host_at(tmp_path, {"proc/stat": ""})).poll(0.0))
