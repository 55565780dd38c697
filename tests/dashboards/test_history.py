"""The demo's history is told by the collectors that run in the exporter, all of them."""

from __future__ import annotations

import os
import sys

import pytest
from support.boards import FOLDER
from support.daemon import parse, select, value

sys.path.insert(0, os.path.join(FOLDER, "demo"))

import demo
from history import record


def test_a_minute_of_history_is_whole():
    names = frozenset(
        {
            "gpuhost_collector_up",
            "gpuhost_gpu_energy_joules_total",
            "gpuhost_gpu_time_seconds_total",
            "gpuhost_pci_switch_ports",
            "gpuhost_nvme_wear_ratio",
        }
    )
    scrapes = record([("steady", 120)], host=demo.HOST, wall=demo.WALL, every=30, step=2, end=60, names=names)
    first, last = (parse(scrapes[at][1]) for at in (0, -1))
    down = [dict(key)["collector"] for key, up in select(last, "gpuhost_collector_up").items() if not up]
    assert down == []
    assert value(last, "gpuhost_pci_switch_ports", acs="disabled") == 16
    assert select(last, "gpuhost_nvme_wear_ratio")
    for gpu in map(str, range(8)):
        energy = [value(series, "gpuhost_gpu_energy_joules_total", gpu=gpu) for series in (first, last)]
        assert energy[1] > energy[0]
        booked = select(last, "gpuhost_gpu_time_seconds_total", gpu=gpu)
        assert sum(booked.values()) == pytest.approx(scrapes[-1][0], abs=6)


def test_history_ends_where_the_host_tells_live():
    """Its own books begin there: a scrape more, and the minutes in which all of it starts are paid twice."""
    walk = [(float(at), f"gpuhost_gpu_time_seconds_total {at}\ngpuhost_boot_time_seconds {demo.WALL:.0f}")
            for at in range(0, 3 * demo.HOUR, demo.EVERY)]  # fmt: skip
    started = 1.7e9 + 0.5
    told = demo.hour_before(walk, 900.0, started)
    assert started - 2 * demo.EVERY < told[-1][0] <= started
    assert told[0][0] == pytest.approx(started - demo.HOUR)
    assert told[-1][1].splitlines()[0].endswith(f" {900 + told[-1][0] - told[0][0]:.0f}")
    began = float(told[0][1].splitlines()[1].split()[1])
    assert began == pytest.approx(started - demo.HOUR - 900)


def test_counters_go_on_where_the_walks_next_worker_takes_over():
    def told(at, booked, seen):
        counter = f'# TYPE gpuhost_a_total counter\ngpuhost_a_total{{gpu="0"}} {booked}\n'
        return (at, f"{counter}# TYPE gpuhost_b gauge\ngpuhost_b {seen}")

    first = [told(0.0, 0.0, 7.0), told(30.0, 30.0, 8.0), told(60.0, 60.0, 9.0)]
    second = [told(60.0, 40.0, 9.0), told(90.0, 70.0, 5.0)]
    third = [told(90.0, 10.0, 5.0), told(120.0, 40.0, 6.0)]
    walk = demo.joined([first, second, third])
    assert [at for at, _ in walk] == [0.0, 30.0, 60.0, 90.0, 120.0]
    series = [parse(text) for _, text in walk]
    assert [value(each, "gpuhost_b") for each in series] == [7, 8, 9, 5, 6]
    assert [value(each, "gpuhost_a_total", gpu="0") for each in series] == [0, 30, 60, 90, 120]
