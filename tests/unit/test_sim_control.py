"""The control file and the scenario files of the simulation."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sim import catalogue, control, scenario
from gpuhost_exporter.sim.nvml import SimNvml
from gpuhost_exporter.sim.scenario import Fault
from gpuhost_exporter.sim.timeline import Timeline

ACTIVITIES = {"work": {"host": {}, "gpu": {"sm": 0.5, "power": 0.5}}}
HOSTS = {"h100x8", "l40s", "vm", "mig", "oldkernel", "nogpu"}
SCENARIOS = {
    "array-degraded", "array-slow", "checkpoint-async", "checkpoint-one-writer", "checkpoint-stall", "checkpoint-sync",
    "clocks-locked", "data-starved", "drive-hung", "drive-pulled", "driver-crash", "driver-hung", "fabric-broken",
    "gpu-lost", "gpu-reset", "idle", "nccl-hang", "network-collective", "nvlink-down", "roce-congested", "steady",
    "straggler", "thermal", "tour", "xid-79",
}  # fmt: skip


class FakeClock:
    def __init__(self, now: float = 5000.0) -> None:
        self.at = now

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return 1.76e9 + self.at


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control.json")


def test_what_is_created_is_what_is_loaded(path: str) -> None:
    created = control.create(path, "h100x8", "steady", FakeClock(), frozen=12.5)
    assert control.load(path) == created
    assert created.elapsed(99999.0) == 12.5


def test_the_simulated_host_has_the_uptime_of_the_real_one(path: str) -> None:
    assert control.create(path, "vm", "idle", FakeClock(5000.0)).booted_wall == 1.76e9


def test_a_switch_appends_a_segment_where_the_time_stands(path: str) -> None:
    clock = FakeClock()
    control.create(path, "h100x8", "steady", clock)
    clock.at += 30
    switched = control.switch(path, "thermal", clock)
    assert [(segment.scenario, segment.started_at) for segment in switched.segments] == [
        ("steady", 5000.0),
        ("thermal", 5030.0),
    ]
    assert control.load(path) == switched


def test_a_switch_at_a_frozen_time_begins_there(path: str) -> None:
    control.create(path, "h100x8", "steady", FakeClock(), frozen=40.0)
    assert control.switch(path, "idle", FakeClock(9000.0)).segments[-1].started_at == 5040.0


def test_time_before_the_start_is_the_start(path: str) -> None:
    assert control.create(path, "h100x8", "steady", FakeClock()).elapsed(10.0) == 0.0


@pytest.mark.parametrize(
    ("target", "expected"),
    [("h100x8", ("h100x8", "steady")), ("l40s:thermal", ("l40s", "thermal")), ("vm:", ("vm", "steady"))],
)
def test_a_target_is_a_host_and_perhaps_a_scenario(target: str, expected: tuple[str, str]) -> None:
    assert control.parse_target(target) == expected


def test_an_unknown_host_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'b200'; known: h100x8, l40s, vm, mig, oldkernel, nogpu"):
        control.parse_target("b200:steady")


def test_an_unknown_scenario_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'fire'; known: array-degraded, .*, xid-79"):
        control.parse_target("h100x8:fire")


def test_the_agreed_hosts_and_scenarios_are_there() -> None:
    assert set(catalogue.names()) == HOSTS
    assert set(scenario.names()) == SCENARIOS


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_each_scenario_says_what_it_shows(name: str) -> None:
    assert len(scenario.load(name).description) > 5


VALID = {
    "host": "vm",
    "segments": [{"scenario": "idle", "started_at": 1}],
    "frozen": None,
    "boot_id": "b",
    "started_wall": 1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"host": "b200"}, "unknown simulated host", id="host"),
        pytest.param({"host": 7}, "expected text", id="host-no-text"),
        pytest.param({"segments": []}, "at least one", id="no-segments"),
        pytest.param({"segments": 4}, "segments", id="segments-no-list"),
        pytest.param({"segments": [{"scenario": "fire", "started_at": 1}]}, "unknown scenario", id="scenario"),
        pytest.param({"segments": [{"scenario": "idle"}]}, "started_at is missing", id="no-start"),
        pytest.param(
            {"segments": [{"scenario": "idle", "started_at": 2}, {"scenario": "idle", "started_at": 1}]},
            "in the order",
            id="backwards",
        ),
        pytest.param({"frozen": "no"}, "expected a number", id="frozen"),
        pytest.param({"started_wall": True}, "expected a number", id="wall"),
    ],
)
def test_a_broken_control_file_is_named_with_what_is_wrong(path: str, change: object, message: str) -> None:
    Path(path).write_text(json.dumps({**VALID, **change}))
    with pytest.raises(ConfigError, match=message) as caught:
        control.load(path)
    assert path in str(caught.value)


def test_an_absent_control_file_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        control.load(path)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        control.create(str(tmp_path / "none" / "c.json"), "vm", "idle", FakeClock())


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        control.load(str(path))


def test_the_last_phase_goes_on_for_ever() -> None:
    parsed = scenario.parse("x", '[[phase]]\nseconds = 5\nactivity = "work"', ACTIVITIES)
    assert math.isinf(parsed.phases[-1].seconds)


def test_levels_add_up_from_the_activity_to_all_gpus_to_one_gpu() -> None:
    text = '[[phase]]\nactivity = "work"\nall = {sm = 0.4}\ngpu.2 = {power = 0.1}'
    phase = scenario.parse("x", text, ACTIVITIES).phases[0]
    assert (phase.gpu.sm, phase.gpu.power) == (0.4, 0.5)
    assert [(number, levels.sm, levels.power) for number, levels in phase.others] == [(2, 0.4, 0.1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "expected phases or stops", id="empty"),
        pytest.param("a = ", "scenario x", id="not-toml"),
        pytest.param("speed = 1", "unknown key 'speed'", id="key"),
        pytest.param("phase = 3", "array of tables", id="phase-no-table"),
        pytest.param('[[phase]]\nactivity = "sleep"', "unknown activity 'sleep'; known: work", id="activity"),
        pytest.param('[[phase]]\nactivity = "work"\nall = {sn = 1}', "unknown key 'sn'", id="level"),
        pytest.param('[[phase]]\nactivity = "work"\nall = {sm = 1.2}', "sm is a ratio", id="ratio"),
        pytest.param('[[phase]]\nactivity = "work"\nhost = {nic = -1}', "number from 0", id="negative"),
        pytest.param('[[phase]]\nactivity = "work"\ngpu.a = {}', "keyed by the GPU's number", id="gpu-key"),
        pytest.param('[[phase]]\nactivity = "work"\nseconds = 0', "no seconds", id="no-seconds"),
        pytest.param('[[phase]]\nactivity = "work"\n' * 2, "needs seconds", id="endless-first"),
        pytest.param('loop = true\n[[phase]]\nactivity = "work"', "every phase of a loop", id="endless-loop"),
        pytest.param(
            '[[phase]]\nactivity = "work"\n[[fault]]\nkind = "fire"\nat = 1',
            "unknown fault 'fire'; known: gpu_lost",
            id="fault",
        ),
    ],
)
def test_a_broken_scenario_is_refused_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scenario.parse("x", text, ACTIVITIES)


@given(st.text())
def test_any_text_is_a_scenario_or_refused(text: str) -> None:
    try:
        parsed = scenario.parse("x", text, ACTIVITIES)
    except ConfigError:
        return
    assert parsed.phases or parsed.stops


def test_every_gpu_and_drive_of_a_host_has_a_place_of_its_own() -> None:
    for name in catalogue.names():
        places = [device.bdf for device in catalogue.host(name).devices]
        assert len(places) == len(set(places)), name


def test_the_reference_host_is_an_hgx_h100() -> None:
    host = catalogue.host("h100x8")
    assert host.model is not None
    assert (len(host.gpus), host.model.name, host.model.links) == (8, "NVIDIA H100 80GB HBM3", 18)
    assert [(array.name, array.level, len(array.members)) for array in host.arrays] == [
        ("md0", "raid0", 4),
        ("md127", "raid1", 2),
    ]
    assert sorted(port.gigabits for port in host.ports) == [100] + [400] * 8
    assert dataclasses.asdict(host.gpus[0])["uuid"] == "GPU-ab81209e-dc86-1008-458f-41b232887124"


def test_a_gpus_levels_and_holders_are_set_live_and_its_siblings_keep_theirs(tmp_path):
    path, clock = str(tmp_path / "control.json"), FakeClock()
    control.create(path, "h100x8", "steady", clock)
    clock.at += 10
    control.change(path, [control.GpuChange(0, (4242, 4243), {"tensor": 0.0, "pcie_tx": 2e9})], clock)
    clock.at += 10
    control.change(path, [], clock)
    line = Timeline(control.load(path))
    assert [line.pids(0, at) for at in (5, 15, 25)] == [(4711,), (4242, 4243), (4711,)]
    assert line.pids(1, 15) == (4712,)
    assert line.gpu_levels(0, 15)[0].tensor == 0
    assert line.gpu_levels(0, 25)[0].tensor > 0.3 < line.gpu_levels(1, 15)[0].tensor
    sent = [line.gpu_levels(0, at)[1].pcie_tx for at in (10, 20)]
    assert sent[1] - sent[0] == pytest.approx(20e9, rel=0.03)


def test_the_library_names_the_holders_that_were_set(tmp_path):
    path, clock = str(tmp_path / "control.json"), FakeClock()
    control.create(path, "h100x8", "steady", clock, real_roots=True)
    assert control.load(path).real_roots
    control.change(path, [control.GpuChange(0, (4242,)), control.GpuChange(1, ())], clock)
    library = SimNvml(path, clock)
    library.nvmlInit()
    held = [
        [row.pid for row in library.nvmlDeviceGetComputeRunningProcesses(library.nvmlDeviceGetHandleByIndex(index))]
        for index in range(3)
    ]
    assert held == [[4242], [], [4713]]


@pytest.mark.parametrize(("error", "open_ones"), [(18, 18), (4, None), (0, None)], ids=["mismatch", "denied", "no GPU"])
def test_a_driver_fails_for_who_opens_it_and_with_a_mismatch_for_who_has_it_open(tmp_path, error, open_ones):
    path, clock = str(tmp_path / "control.json"), FakeClock()
    control.create(path, "h100x8", "steady", clock)
    before, after = SimNvml(path, clock), SimNvml(path, clock)
    before.nvmlInit()
    handle = before.nvmlDeviceGetHandleByIndex(3)
    clock.at += 10
    control.change(path, [], clock, [Fault("driver_fails", 5.0, until=20.0, code=error)])
    assert told(before.nvmlDeviceGetPowerUsage, handle) is None, "not yet"
    clock.at += 5
    assert told(before.nvmlDeviceGetPowerUsage, handle) == open_ones
    assert told(after.nvmlInit) == (error or None)
    if not error:
        assert after.nvmlDeviceGetCount() == 0
    clock.at += 15
    assert told(before.nvmlDeviceGetPowerUsage, handle) is None
    after.nvmlInit()
    assert after.nvmlDeviceGetCount() == 8


def told(call, *arguments):
    """The error that a call raises, None where it answers."""
    try:
        call(*arguments)
    except pynvml.NVMLError as error:
        return error.value
    return None


def test_a_broken_fault_of_a_segment_is_named(tmp_path):
    path = tmp_path / "control.json"
    control.create(str(path), "h100x8", "steady", FakeClock())
    document = json.loads(path.read_text())
    document["segments"][0]["faults"] = [{"kind": "driver_flies", "at": 0}]
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="unknown fault 'driver_flies'"):
        control.load(str(path))


@pytest.mark.parametrize(
    "change",
    [{"gpu": 0, "levels": {"speed": 1}}, {"gpu": "0"}, {"pids": []}, {"gpu": 0, "pids": 7}, 7],
    ids=["unknown level", "no number", "no gpu", "no list", "no table"],
)
def test_a_broken_change_is_named(tmp_path, change):
    path = tmp_path / "control.json"
    control.create(str(path), "h100x8", "steady", FakeClock())
    document = json.loads(path.read_text())
    document["segments"][0]["gpus"] = [change]
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"control\.json"):
        control.load(str(path))
