"""Each fault, in the real process over real HTTP: what it costs, and what it must not cost.

The faults of a scenario come 20 s after its start; a test begins shortly before.
"""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from support.daemon import Daemon, descendants, select, value
from support.simulated import arguments

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.collectors.xid import AT_ZERO
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.scenario import Fault

GPUS = {str(index) for index in range(8)}
# One of each collector that reads a GPU.
PER_GPU = (
    "gpuhost_gpu_power_watts",
    "gpuhost_gpu_utilization_ratio",
    "gpuhost_gpu_memory_bandwidth_bytes_total",
    "gpuhost_gpu_ecc_enabled",
    "gpuhost_gpu_pcie_generation",
    "gpuhost_nvlink_links_active",
    "gpuhost_nvlink_usable_bytes_per_second",
)


@pytest.fixture
def start(tmp_path):
    running = []

    def run(scenario, *more, host="h100x8", elapsed=0.0, config=""):
        file = tmp_path / "exporter.toml"
        file.write_text(config)
        running.append(
            Daemon(tmp_path, f"--config.file={file}", *arguments(tmp_path, host, scenario, elapsed=elapsed), *more)
        )
        return running[-1]

    yield run
    for daemon in running:
        daemon.stop()


def gpus_with(series, name):
    return {dict(key)["gpu"] for key in select(series, name)}


def all_gpus_read(series):
    return all(gpus_with(series, name) == GPUS for name in PER_GPU)


@pytest.mark.timeout(300)
def test_a_lost_gpu_costs_its_own_series_and_nothing_else(start):
    daemon = start("gpu-lost", elapsed=10.0)
    daemon.wait_until(all_gpus_read, 15)
    series = daemon.wait_until(
        lambda seen: (
            value(seen, "gpuhost_gpu_up", gpu="3") == 0 and not any("3" in gpus_with(seen, name) for name in PER_GPU)
        )
    )
    for name in PER_GPU:
        assert gpus_with(series, name) == GPUS - {"3"}, name
    assert not select(series, "gpuhost_nvlink_up", gpu="3")
    assert value(series, "gpuhost_gpu_up", gpu="3") == 0
    assert all(value(series, "gpuhost_gpu_up", gpu=gpu) == 1 for gpu in GPUS - {"3"})
    assert value(series, "gpuhost_gpu_state", gpu="3", state="lost") == 1
    assert value(series, "gpuhost_collector_up", collector="gpu") == 1
    assert value(series, "gpuhost_gpus_expected") in (8, None)
    series = daemon.wait_until(
        lambda seen: value(seen, "gpuhost_xid_errors_total", gpu="3", xid="79") == 1, AT_ZERO + 60
    )
    assert value(series, "gpuhost_xid_events_total", gpu="3", severity="critical") == 1
    assert sum(select(series, "gpuhost_xid_events_total", severity="critical").values()) == 1
    daemon.wait_until(lambda seen: value(seen, "gpuhost_inventory_missing", kind="gpus") == 1)
    told = [line for line in daemon.log().splitlines() if re.search(r"\blost\b", line.replace("gpu-lost", ""))]
    assert len(told) == 1, "told once a change, not once a poll, nor once a collector"
    assert re.search(r"WARNING GPU 3 .*: lost$", told[0])


def test_a_gpu_is_back_after_its_reset(start):
    daemon = start("gpu-reset", elapsed=8.0)
    daemon.wait_until(all_gpus_read, 10)
    daemon.wait_until(lambda seen: value(seen, "gpuhost_gpu_up", gpu="3") == 0, 20)
    series = daemon.wait_until(all_gpus_read, 90)
    assert value(series, "gpuhost_gpu_up", gpu="3") == 1


def test_a_gpu_that_was_lost_before_the_start_shows_by_its_index(start):
    daemon = start("gpu-lost", elapsed=25.0)
    series = daemon.wait_until(lambda seen: value(seen, "gpuhost_gpu_state", gpu="3", state="lost") == 1, 10)
    assert value(series, "gpuhost_gpu_up", gpu="3", uuid="") == 0
    assert gpus_with(series, "gpuhost_gpu_info") == GPUS - {"3"}


def test_a_call_that_never_returns_costs_its_gpu_and_no_scrape(start):
    daemon = start("driver-hung", elapsed=12.0, config="[nvml]\ncall-timeout = 1\n")
    daemon.wait_until(all_gpus_read, 10)
    slowest = 0.0
    deadline = time.monotonic() + 60
    while True:
        begin = time.monotonic()
        series = daemon.series()
        slowest = max(slowest, time.monotonic() - begin)
        if value(series, "gpuhost_gpu_state", gpu="3", state="hung") == 1 and all(
            gpus_with(series, name) == GPUS - {"3"} for name in PER_GPU
        ):
            break
        assert time.monotonic() < deadline, daemon.log()
        time.sleep(0.1)
    assert slowest < 1.0
    assert value(series, "gpuhost_nvml_reader_restarts_total", reason="hung") >= 1
    assert value(series, "gpuhost_gpu_up", gpu="3") == 0
    assert value(series, "gpuhost_nvml_state", state="ok") == 1
    assert sum(name.startswith("gpuhost-nvml") for name in daemon.descendants().values()) == 1


def test_a_crash_in_the_library_stops_no_scrape_and_loses_no_count(start):
    daemon = start("driver-crash", elapsed=12.0)
    before = daemon.wait_until(all_gpus_read, 10)
    name = "gpuhost_gpu_memory_bandwidth_bytes_total"
    crashed = daemon.wait_until(lambda seen: value(seen, "gpuhost_nvml_reader_restarts_total", reason="crashed") == 1)
    after = daemon.wait_until(all_gpus_read, 10)
    for key, count in select(before, name).items():
        assert select(after, name)[key] >= count
    assert value(crashed, "gpuhost_collector_up", collector="pressure") == 1
    assert "SIGSEGV" in daemon.log()


def kill_reader(daemon):
    os.kill(next(pid for pid, name in daemon.descendants().items() if name.startswith("gpuhost-nvml")), signal.SIGKILL)


@pytest.mark.parametrize(("state", "code"), [("mismatch", 18), ("no_gpus", 0), ("permission", 4)])
def test_a_driver_that_fails_leaves_no_figures_and_is_told_once(start, tmp_path, state, code):
    """The driver is upgraded under the running exporter; or a reader that was started anew finds no GPU, or may not."""
    daemon = start("steady")
    daemon.wait_until(all_gpus_read, 15)
    path = str(tmp_path / "control.json")
    control.change(path, (), SystemClock(), [Fault("driver_fails", 0.0, code=code)])
    restarted = state != "mismatch"  # who has the driver open goes on, but for a mismatch
    if restarted:
        kill_reader(daemon)
    series = daemon.wait_until(
        lambda seen: (
            value(seen, "gpuhost_nvml_state", state=state) == 1
            and not any(select(seen, name) for name in PER_GPU)
            and all(value(seen, "gpuhost_gpu_state", gpu=gpu, state="unknown") == 1 for gpu in GPUS)
        ),
        45,
    )
    assert all(value(series, "gpuhost_gpu_up", gpu=gpu) == 0 for gpu in GPUS)
    assert value(series, "gpuhost_gpu_state", gpu="3", state="lost") == 0
    assert value(series, "gpuhost_collector_up", collector="gpu") == 0
    assert value(series, "gpuhost_collector_up", collector="block") == 1
    # Long enough for one more attempt, 10 s after the first.
    polls = value(series, "gpuhost_collector_polls_total", collector="gpu")
    daemon.wait_until(lambda seen: value(seen, "gpuhost_collector_polls_total", collector="gpu") > polls + 12)
    control.change(path, (), SystemClock())
    series = daemon.wait_until(all_gpus_read, 60)
    assert all(value(series, "gpuhost_gpu_state", gpu=gpu, state="ok") == 1 for gpu in GPUS)
    log = daemon.log()
    between = ["crashed"] if restarted else []
    assert re.findall(r"NVML: (\w+)", log) == ["ok", *between, state, "ok"], "told once a change, not once an attempt"
    assert log.count(": missing") == (8 if state == "no_gpus" else 0)
    assert "lost" not in log


def test_a_dead_link_takes_its_share_of_the_capacity(start):
    daemon = start("nvlink-down", elapsed=10.0)
    daemon.wait_until(all_gpus_read, 10)
    series = daemon.wait_until(lambda seen: value(seen, "gpuhost_nvlink_links_active", gpu="3") == 17)
    assert value(series, "gpuhost_nvlink_capacity_bytes_per_second", gpu="3") == 850e9
    assert value(series, "gpuhost_nvlink_usable_bytes_per_second", gpu="3") == 850e9
    assert value(series, "gpuhost_nvlink_capacity_bytes_per_second", gpu="2") == 900e9
    assert value(series, "gpuhost_nvlink_links_expected", gpu="3") == 18
    assert value(series, "gpuhost_nvlink_up", gpu="3", link="17") == 0
    assert value(series, "gpuhost_nvlink_up", gpu="3", link="16") == 1
    assert select(series, "gpuhost_nvlink_errors_total", gpu="3", link="17")
    assert not select(series, "gpuhost_nvlink_errors_total", gpu="2")


def test_trained_links_without_a_fabric_are_nominal_and_not_usable(start):
    daemon = start("fabric-broken")
    series = daemon.wait_until(lambda seen: gpus_with(seen, "gpuhost_nvlink_usable_bytes_per_second") == GPUS, 20)
    for gpu in GPUS:
        assert value(series, "gpuhost_nvlink_capacity_bytes_per_second", gpu=gpu) == 900e9
        assert value(series, "gpuhost_nvlink_usable_bytes_per_second", gpu=gpu) == 0
        assert value(series, "gpuhost_nvlink_fallback_peers", gpu=gpu) == 7


def test_heat_shows_as_seconds_throttled_on_the_hot_gpu_only(start):
    daemon = start("thermal", elapsed=25.0)
    name = "gpuhost_gpu_throttled_seconds_total"
    first = daemon.wait_until(all_gpus_read, 10)
    time.sleep(3)
    second = daemon.series()
    grown = {
        dict(key)["gpu"]
        for key, seconds in select(second, name, reason="thermal").items()
        if seconds > select(first, name, reason="thermal")[key]
    }
    assert grown == {"2"}


def test_locked_clocks_and_a_lowered_power_limit_show_on_their_gpus_only(start):
    daemon = start("clocks-locked", elapsed=25.0)
    series = daemon.wait_until(all_gpus_read, 10)
    locked = select(series, "gpuhost_gpu_clocks_locked")
    assert {dict(key)["gpu"] for key, shows in locked.items() if shows} == {"5"}
    lowered = select(series, "gpuhost_gpu_power_limit_lowered")
    assert {dict(key)["gpu"] for key, shows in lowered.items() if shows} == {"6"}
    assert len(lowered) == 8
    assert value(series, "gpuhost_gpu_power_limit_watts", gpu="6") == 500
    assert value(series, "gpuhost_gpu_power_limit_default_watts", gpu="6") == 700
    assert b"clocks are locked" in daemon.get("/")[1]


@pytest.mark.timeout(400)
def test_an_event_is_counted_once_across_restarts(start, tmp_path):
    daemon = start("xid-79", f"--storage.path={tmp_path}/kept")
    for code in ("79", "154"):
        daemon.wait_until(
            lambda seen, code=code: value(seen, "gpuhost_xid_errors_total", gpu="6", xid=code) == 1, 2 * AT_ZERO + 60
        )
    daemon.stop()
    file = tmp_path / "control.json"
    with Daemon(
        tmp_path, "--simulate=h100x8:xid-79", f"--simulate.control={file}", f"--storage.path={tmp_path}/kept"
    ) as again:
        again.ready()
        time.sleep(AT_ZERO + 3)
        series = again.series()
        assert sum(select(series, "gpuhost_xid_errors_total", xid="79").values()) == 0
        assert sum(select(series, "gpuhost_xid_events_total").values()) == 0


def test_a_host_without_a_driver_serves_what_it_has(start):
    daemon = start("steady", host="nogpu")
    series = daemon.wait_until(lambda seen: value(seen, "gpuhost_nvml_state", state="no_library") == 1, 10)
    assert select(series, "gpuhost_block_read_bytes_total")
    assert not select(series, "gpuhost_gpu_up")
    assert value(series, "gpuhost_collector_up", collector="gpu") == 0
    assert value(series, "gpuhost_collector_up", collector="block") == 1


def test_release_lets_go_of_the_driver_and_resume_takes_it_up(start):
    daemon = start("steady")
    daemon.wait_until(all_gpus_read, 10)
    assert "gpuhost-nvml" in daemon.descendants().values()
    done = daemon.command("release", "--for", "5m")
    assert (done.returncode, done.stderr) == (0, "")
    series = daemon.wait_until(
        lambda seen: (
            value(seen, "gpuhost_nvml_state", state="released") == 1 and not select(seen, "gpuhost_gpu_power_watts")
        ),
        15,
    )
    assert "gpuhost-nvml" not in daemon.descendants().values()
    assert value(series, "gpuhost_gpu_state", gpu="0", state="unknown") == 1
    assert value(series, "gpuhost_collector_up", collector="block") == 1
    assert daemon.command("resume").returncode == 0
    daemon.wait_until(all_gpus_read, 20)


def test_a_privileged_reader_that_ends_is_started_again(start):
    daemon = start("steady")
    daemon.wait_until(lambda seen: value(seen, "gpuhost_kernel_log_up") == 1, 10)
    first = [pid for pid, name in daemon.descendants().items() if name.startswith("gpuhost-privi")]
    os.kill(first[0], signal.SIGKILL)
    daemon.wait_until(lambda seen: value(seen, "gpuhost_kernel_log_up") == 0, 10)
    daemon.wait_until(lambda seen: value(seen, "gpuhost_kernel_log_up") == 1, 10)
    second = [pid for pid, name in daemon.descendants().items() if name.startswith("gpuhost-privi")]
    assert len(second) == 1
    series = daemon.series()
    assert value(series, "gpuhost_reader_restarts_total", reader="privileged") == 1
    assert value(series, "gpuhost_reader_restarts_total", reader="nvml") == 0
    assert value(series, "gpuhost_reader_stuck", reader="privileged") == 0
    assert first != second


def test_without_its_launcher_the_exporter_ends_so_that_it_is_started_anew(start):
    daemon = start("steady")
    daemon.ready()
    pids = daemon.descendants()
    os.kill(next(pid for pid, name in pids.items() if name.startswith("gpuhost-launch")), signal.SIGKILL)
    assert daemon.process.wait(10) == 1
    assert "the launcher has gone" in daemon.log()
    assert gone(pids)


def gone(pids, seconds=3.0):
    deadline = time.monotonic() + seconds
    while [pid for pid in pids if os.path.exists(f"/proc/{pid}/fd/0")]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_process_is_left_after_any_end(start, number):
    daemon = start("steady")
    daemon.ready()
    pids = descendants(daemon.process.pid)
    assert len(pids) >= 4
    daemon.process.send_signal(number)
    daemon.process.wait(10)
    assert gone(pids)


def test_no_process_is_left_when_the_driver_hangs_meanwhile(start):
    daemon = start("driver-hung", elapsed=19.0)
    time.sleep(2)
    pids = descendants(daemon.process.pid)
    begin = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begin < 5
    assert gone(pids)


def test_the_process_that_answers_http_holds_no_capability_and_no_device(start):
    daemon = start("steady")
    daemon.ready()
    with open(f"/proc/{daemon.process.pid}/status", encoding="ascii") as status:
        facts = {name: rest.strip() for name, _, rest in (line.partition(":") for line in status)}
    assert int(facts["CapEff"], 16) == 0
    assert int(facts["CapPrm"], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    folder = f"/proc/{daemon.process.pid}/fd"
    opened = {os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    # /dev/shm is where the simulation is.
    assert not {path for path in opened if path.startswith("/dev/") and not path.startswith(("/dev/null", "/dev/shm/"))}


def test_switching_the_scenario_keeps_every_counter_going_up(start, tmp_path):
    daemon = start("steady")
    daemon.wait_until(all_gpus_read, 10)
    before = daemon.series()
    done = daemon.command("simulate", "idle", "--control", str(tmp_path / "control.json"))
    assert done.returncode == 0, done.stderr
    after = daemon.wait_until(lambda seen: value(seen, "gpuhost_gpu_processes", gpu="0") == 0, 20)
    for (name, key), count in before.items():
        if name.endswith("_total") and (name, key) in after:
            assert after[name, key] >= count, (name, key)
