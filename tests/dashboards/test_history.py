"""The demo's history is told by the collectors that run in the exporter, all of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

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
            "gpuhost_exporter_render_seconds_total",
            "gpuhost_exporter_scrapes_total",
            "gpuhost_fabric_round_trip_median_seconds",
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
    assert 0 < value(last, "gpuhost_fabric_round_trip_median_seconds", peer=demo.NEXT, transport="rdma") < 5e-6
    rendered = value(last, "gpuhost_exporter_render_seconds_total")
    assert 0 < rendered / value(last, "gpuhost_exporter_scrapes_total", format="text") < 0.5
    for gpu in map(str, range(8)):
        energy = [value(series, "gpuhost_gpu_energy_joules_total", gpu=gpu) for series in (first, last)]
        assert energy[1] > energy[0]
        booked = select(last, "gpuhost_gpu_time_seconds_total", gpu=gpu)
        assert sum(booked.values()) == pytest.approx(scrapes[-1][0], abs=6)


def test_history_ends_where_the_host_tells_live():
    """Its own books begin there: a scrape more, and the minutes in which all of it starts are paid twice."""
    text = (
        f"gpuhost_gpu_time_seconds_total {{}}\ngpuhost_boot_time_seconds {demo.WALL:.0f}\n"
        f'gpuhost_fabric_probe_loss_ratio{{{{peer="{demo.NEXT}"}}}} 0'
    )
    walk = [(float(at), text.format(at)) for at in range(0, 3 * demo.HOUR, demo.EVERY)]
    started = 1.7e9 + 0.5
    told = demo.hour_before(walk, 900.0, started, "gpu-host-2")
    assert all('{peer="gpu-host-2"}' in text for _, text in told)
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


def test_an_hour_is_kept_whole_and_in_place_of_earlier_ones(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gpuhost-demo"
    for name in "abc":
        demo.keep(folder / f"{name}.json", json.dumps(name))
    assert sorted(os.listdir(folder)) == ["b.json", "c.json"]
    write = Path.write_text

    def fill(path, text, **how):
        write(path, text[:1], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill)
    demo.keep(folder / "d.json", json.dumps("d"))
    assert os.listdir(folder) == ["c.json"]
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["docker", "podman", ""])
def test_without_prometheus_it_says_what_to_install_or_to_start(tmp_path, monkeypatch, capsys, engine):
    programs, temporary = tmp_path / "bin", tmp_path / "tmp"
    programs.mkdir()
    temporary.mkdir()
    if engine:
        (programs / engine).touch(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert demo.main([]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    told = said.err.splitlines()
    assert told[0] == "prometheus is not installed: apt-get install prometheus"
    assert [line.partition(" compose -f ")[0].split()[-1] for line in told[1:]] == [engine] * bool(engine)
    assert os.listdir(temporary) == []
