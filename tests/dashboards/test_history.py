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
