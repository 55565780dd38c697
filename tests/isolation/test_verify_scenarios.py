"""Every check of `verify` on every simulated host, healthy and in each scenario that the simulator has."""

from __future__ import annotations

import json
import os

import pytest
from support.forked import Forked
from support.programs import MEASURED
from support.simulated import arguments

from gpuhost_exporter.sim import catalogue, scenario
from gpuhost_exporter.verify.passive import CHECKS

GPUS = [f"GPU {index}" for index in range(8)]
PORTS = [f"mlx5_{index} port 1" for index in range(8)]

# What does not pass, by host; what is not told there is skipped.
HEALTHY = {
    "h100x8": {},
    "l40s": {},
    "mig": {("modes", f"GPU {index}"): "warn" for index in (0, 1)},  # alone among siblings that are whole
    "oldkernel": {},
    "nogpu": {},
    "vm": {("platform", ""): "warn"},
}

# What does not pass on h100x8, by scenario.
SCENARIOS = {
    "steady": {},
    "idle": {},
    "tour": {},
    "straggler": {},
    "network-collective": {},
    "nccl-hang": {},
    "checkpoint-async": {},
    "checkpoint-sync": {},
    "checkpoint-one-writer": {},
    "checkpoint-stall": {("arrays", "md0"): "warn"},
    "data-starved": {("arrays", "md0"): "warn"},
    "driver-crash": {},
    "driver-hung": {("GPUs", "GPU 3"): "fail", ("XIDs", "GPU unknown"): "fail"},
    "gpu-lost": {("GPUs", "GPU 3"): "fail", ("XIDs", "GPU unknown"): "fail"},
    "gpu-reset": {("GPUs", "GPU 3"): "fail", ("XIDs", "GPU unknown"): "fail"},
    "xid-79": {("GPUs", "GPU 6"): "fail", ("XIDs", "GPU unknown"): "fail"},
    "nvlink-down": {
        ("NVLink", "GPU 3"): "fail",
        ("XIDs", "GPU 3"): "fail",
        ("NVLink fabric", "GPU 3"): "fail",
        ("NVLink fabric", "NVSwitch"): "fail",
    },
    "fabric-broken": {(check, gpu): "fail" for check in ("NVLink", "NVLink fabric") for gpu in GPUS}
    | {("NVLink fabric", "NVSwitch"): "fail", ("NVLink fabric", "Fabric manager"): "fail"},
    "thermal": {("throttling", "GPU 2"): "warn"},
    "clocks-locked": {("clocks", "GPU 5"): "warn", ("power limit", "GPU 6"): "warn"},
    "array-degraded": {("arrays", "md127"): "warn", ("drives", "nvme5"): "fail"},
    "array-slow": {("arrays", "md0"): "warn"},
    "drive-pulled": {("arrays", "md0"): "fail"},
    "drive-hung": {("drives", "nvme1"): "warn"},
    "roce-congested": {("RDMA ports", port): "fail" for port in PORTS},
}
# Told by rates between two looks: a simulator that waits for a processor meanwhile shows less than there is.
BY_RATES = {"array-slow", "roce-congested"}
# Some seconds of reading or writing, and then none: a look may fall between them.
PERHAPS = {"data-starved", "checkpoint-stall"}
SAID = {
    ("driver-hung", "GPUs", "GPU 3"): "a call to it does not return",
    ("clocks-locked", "clocks", "GPU 5"): "clocks are locked",
    ("clocks-locked", "power limit", "GPU 6"): "power limit lowered, 500 / 700 W",
    ("array-slow", "arrays", "md0"): "waits for nvme2n1: reads",
    ("checkpoint-stall", "arrays", "md0"): "too slow: writes",
    ("nvlink-down", "NVLink", "GPU 3"): "17 of 18 NVLinks active",
    ("fabric-broken", "NVLink fabric", "Fabric manager"): "not running",
    ("roce-congested", "RDMA ports", "mlx5_0 port 1"): "the network makes it pause",
}


@pytest.fixture(scope="module")
def forked():
    with Forked(dict(os.environ)) as run:
        yield run


@pytest.fixture
def verify(forked, tmp_path):
    """Results by check and device; a call into a hung driver is waited for no longer than need be."""

    def run(target):
        patience = 2 if target.endswith("driver-hung") else 10
        (tmp_path / "config.toml").write_text(f"[nvml]\ncall-timeout = {patience}\n")
        done = forked("verify", "--json", f"--simulate={target}", "--config.file=config.toml", folder=tmp_path)
        report = json.loads(done.stdout)
        found = {(each["check"], each.get("device", "")): each for each in report["results"]}
        assert len(found) == len(report["results"]), "each check once of each device"
        assert (done.stderr, report["simulated"]) == ("", target)
        assert done.returncode == (not report["accepted"])
        return found

    return run


def problems(found):
    return {key: each["verdict"] for key, each in found.items() if each["verdict"] in ("warn", "fail")}


def test_no_scenario_of_the_simulator_and_no_host_is_left_out():
    assert set(SCENARIOS) == set(scenario.names())
    assert set(HEALTHY) == set(catalogue.names())


@pytest.mark.parametrize("host", HEALTHY)
def test_a_healthy_host_is_accepted_and_every_check_is_told(verify, host):
    found = verify(host)
    assert problems(found) == HEALTHY[host]
    assert {check for check, _ in found} == {name for name, _, _ in CHECKS} | MEASURED
    assert {found[check, ""]["verdict"] for check in MEASURED} == {"skipped"}, "no program measures a simulated host"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_fails_the_checks_that_it_belongs_to_and_no_other(verify, name):
    found = verify(f"h100x8:{name}")
    tries = 1
    while name in BY_RATES and problems(found) == {} and tries < 10:
        found = verify(f"h100x8:{name}")
        tries += 1
    assert problems(found) == SCENARIOS[name] or (name in PERHAPS and problems(found) == {})
    assert {check for check, _ in found} == {name for name, _, _ in CHECKS} | MEASURED
    for (scenario_name, *key), words in SAID.items():
        if scenario_name == name and problems(found):
            assert words in found[tuple(key)]["why"]
    skipped = {check for (check, _), each in found.items() if each["verdict"] == "skipped"}
    assert skipped - MEASURED <= {"clocks"}, "told only by GPUs that are locked or at their highest"


def test_an_exporters_cursor_neither_hides_what_the_kernel_log_holds_nor_moves(forked, tmp_path):
    simulated = arguments(tmp_path, "h100x8", "nvlink-down", elapsed=30)
    boot = json.loads((tmp_path / "control.json").read_text())["boot_id"]
    cursor = tmp_path / "kept" / "kernel_log.json"
    cursor.parent.mkdir()
    cursor.write_text(json.dumps({"version": 1, "data": {"boot_id": boot, "sequence": 10**9}}))
    before = cursor.read_bytes()
    done = forked("verify", "--json", "--passive", *simulated, "--storage.path=kept", folder=tmp_path)
    verdicts = {(each["check"], each.get("device")): each["verdict"] for each in json.loads(done.stdout)["results"]}
    assert verdicts["XIDs", "GPU 3"] == "fail"
    assert cursor.read_bytes() == before
