"""The simulated /proc, /sys and /dev, read as a real host's would be."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sim import catalogue, control
from gpuhost_exporter.sim.ioctl import Interfaces
from gpuhost_exporter.sim.tree import Tree, run
from gpuhost_exporter.sources import (
    block,
    ethtool,
    kmsg,
    machine,
    nvme,
    pci,
    pressure,
    procfs,
    raid,
    rdma,
    rdma_counters,
)
from gpuhost_exporter.sources.files import Root

HOSTS = catalogue.names()


class FakeClock:
    def __init__(self) -> None:
        self.at = 5000.0

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return 1.76e9 + self.at


class Simulated:
    """A host in a folder, and how to move its time."""

    def __init__(self, folder: Path, host: str, scenario: str) -> None:
        self.clock = FakeClock()
        self.control = str(folder / "control.json")
        self.folder = folder / "root"
        control.create(self.control, host, scenario, self.clock)
        self.tree = Tree(self.control, str(self.folder), self.clock)
        self.tree.write()
        self.root = Root.below(str(self.folder))

    def at(self, seconds: float) -> Simulated:
        self.clock.at = 5000.0 + seconds
        self.tree.write()
        return self

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def names(self, name: str) -> set[str]:
        return {path.name for path in (self.folder / name).iterdir()}


@pytest.fixture
def simulate() -> Iterator[Callable[..., Simulated]]:
    # In memory where there is such a folder: a tree has 1,500 files.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield lambda host="h100x8", scenario="steady": Simulated(Path(folder), host, scenario)


@pytest.mark.parametrize("host", HOSTS)
def test_every_disk_is_told_of_in_both_places(simulate: Callable[..., Simulated], host: str) -> None:
    simulated = simulate(host)
    spec = catalogue.host(host)
    disks, errors = block.read(simulated.root)
    assert not errors
    expected = {drive.name for drive in spec.drives} | {array.name for array in spec.arrays}
    assert {disk.name for disk in disks} == expected
    rows = {line.split()[2]: line.split()[3:] for line in simulated.text("proc/diskstats").splitlines()}
    for name in expected:
        assert simulated.text(f"sys/block/{name}/stat").split() == rows[name]


@pytest.mark.parametrize(("host", "fields"), [("h100x8", 17), ("oldkernel", 15)])
def test_diskstats_has_as_many_fields_as_the_kernel_had(
    simulate: Callable[..., Simulated], host: str, fields: int
) -> None:
    rows = simulate(host).text("proc/diskstats").splitlines()
    assert {len(row.split()) for row in rows} == {3 + fields}
    assert all(re.match(r" {1,3}\d{1,3} {1,7}\d+ \w+( \d+)+$", row) for row in rows)


def test_bytes_read_are_the_arrays_rate_over_time(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate()

    def read_bytes(name: str) -> int:
        return 512 * int(simulated.text(f"sys/block/{name}/stat").split()[2])

    before = {name: read_bytes(name) for name in ("md0", "nvme0n1", "nvme3n1")}
    simulated.at(100)
    moved = {name: read_bytes(name) - old for name, old in before.items()}
    assert moved["md0"] == pytest.approx(100 * 2.4e9, rel=0.02)
    assert moved["nvme0n1"] == moved["nvme3n1"] == pytest.approx(moved["md0"] / 4, abs=512)


def test_requests_queue_at_the_slow_member_only(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate(scenario="array-slow").at(60)
    before = [simulated.text(f"sys/block/nvme{index}n1/stat").split() for index in range(4)]
    simulated.at(70)
    after = [simulated.text(f"sys/block/nvme{index}n1/stat").split() for index in range(4)]
    queue = [(int(new[10]) - int(old[10])) / 10_000 for old, new in zip(before, after, strict=True)]
    busy = [(int(new[9]) - int(old[9])) / 10_000 for old, new in zip(before, after, strict=True)]
    assert queue[2] > 4
    assert max(queue[0], queue[1], queue[3]) < 2
    assert 0.95 <= busy[2] <= 1.001
    assert simulated.text("sys/block/nvme2n1/inflight").split()[0] != "0"


@pytest.mark.parametrize("host", HOSTS)
def test_every_device_is_found_below_its_slot(simulate: Callable[..., Simulated], host: str) -> None:
    simulated = simulate(host)
    for device in catalogue.host(host).devices:
        found = pci.read_device(simulated.root, device.bdf)
        assert found.slot_bdf == device.path[-1]
        assert found.link.generation == (device.generation or None)
        assert found.numa_node == (device.numa if device.numa >= 0 else None)
        assert not sum(count for _, count in found.aer)


def test_the_speed_of_a_link_is_written_as_the_kernel_writes_it(simulate: Callable[..., Simulated]) -> None:
    place = "sys/bus/pci/devices/0000:1b:00.0/current_link_speed"
    assert simulate("h100x8").text(place) == "32.0 GT/s PCIe\n"


def test_an_old_kernel_writes_speeds_shorter(simulate: Callable[..., Simulated]) -> None:
    place = "sys/bus/pci/devices/0000:1b:00.0/current_link_speed"
    assert simulate("oldkernel").text(place) == "16 GT/s\n"


def test_a_gpu_off_the_bus_has_no_link_and_its_sibling_keeps_its_own(
    simulate: Callable[..., Simulated],
) -> None:
    simulated = simulate(scenario="gpu-lost").at(30)
    lost, sibling = (pci.read_device(simulated.root, f"0000:{bus}:00.0").link for bus in ("61", "9d"))
    assert (lost.generation, lost.width) == (None, None)
    assert (sibling.generation, sibling.width) == (5, 16)


def test_a_failing_drive_vanishes_returns_and_recovers(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate(scenario="array-degraded")
    assert simulated.text("proc/mdstat").count("[2/2] [UU]") == 1

    simulated.at(30)
    assert "nvme5n1" not in simulated.names("sys/block")
    assert "nvme5n1" not in simulated.text("proc/diskstats")
    assert nvme.read(simulated.root, "nvme5").state == "dead"
    assert "nvme5n1p2[1](F)" in simulated.text("proc/mdstat")
    assert raid.read(simulated.root, "md127").degraded == 1
    assert "Disk failure on nvme5n1p2" in simulated.text("dev/kmsg")

    simulated.at(100)
    assert "nvme5n1" in simulated.names("sys/block")
    sync = raid.read(simulated.root, "md127").sync
    assert sync is not None
    assert sync.action == "recover"
    assert sync.done_ratio == pytest.approx(0.92, abs=0.02)
    assert re.search(r"\[=+>\.+\]  recovery = 92\.\d% \(\d+/\d+\) finish=", simulated.text("proc/mdstat"))

    simulated.at(300)
    assert raid.read(simulated.root, "md127").degraded == 0


def test_a_stripe_has_no_word_on_redundancy(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate()
    assert {"degraded", "sync_action"}.isdisjoint(simulated.names("sys/block/md0/md"))
    assert simulated.text("sys/block/md0/md/dev-nvme0n1/block/size") == simulated.text("sys/block/nvme0n1/size")


def test_ports_count_words_and_run_at_their_rate(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate()
    port = rdma.read(simulated.root, "mlx5_0", "1")
    assert (port.up, port.rate, port.link_layer) == (True, 50e9, "Ethernet")
    counter = "sys/class/infiniband/mlx5_0/ports/1/counters/port_xmit_data"
    before = int(simulated.text(counter))
    simulated.at(100)
    assert 4 * (int(simulated.text(counter)) - before) == pytest.approx(100 * 18e9, rel=0.02)


def test_congestion_shows_at_the_gpus_ports_only(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate(scenario="roce-congested").at(60)
    counters = "sys/class/infiniband/{}/ports/1/hw_counters/rp_cnp_handled"
    before = {name: int(simulated.text(counters.format(name))) for name in ("mlx5_3", "mlx5_8")}
    simulated.at(70)
    after = {name: int(simulated.text(counters.format(name))) for name in before}
    assert after["mlx5_3"] - before["mlx5_3"] == pytest.approx(480_000, rel=0.04)
    assert after["mlx5_8"] == before["mlx5_8"]


@pytest.mark.parametrize("host", sorted(set(HOSTS) - {"oldkernel"}))
def test_pressure_reads_as_stalled_seconds(simulate: Callable[..., Simulated], host: str) -> None:
    simulated = simulate(host, "checkpoint-sync")

    def stalled() -> float:
        return next(stall.seconds for stall in pressure.read(simulated.root, "io") if stall.kind == "some")

    before = stalled()
    simulated.at(60)
    assert stalled() - before == pytest.approx(7 * 0.42 + 53 * 0.004, rel=0.05)
    assert re.match(
        r"some avg10=\d+\.\d\d avg60=\d+\.\d\d avg300=\d+\.\d\d total=\d+\nfull ",
        simulated.text("proc/pressure/io"),
    )


def test_an_old_kernel_has_no_pressure_and_no_drive_temperature(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate("oldkernel")
    assert "pressure" not in simulated.names("proc")
    assert nvme.temperatures(simulated.root, "nvme0") == ()


@pytest.mark.parametrize("host", HOSTS)
def test_the_machine_says_who_it_is(simulate: Callable[..., Simulated], host: str) -> None:
    simulated = simulate(host)
    spec = catalogue.host(host).system
    identity = machine.identity(simulated.root)
    assert (identity.vendor, identity.product, identity.kernel) == (spec.vendor, spec.product, spec.kernel)
    running = machine.running(simulated.root)
    assert (running.boot_time, running.processors) == (1_760_000_000, spec.threads)
    assert machine.memory_bytes(simulated.root) == spec.memory_kib * 1024


@pytest.mark.parametrize(("host", "flag"), [("vm", True), ("h100x8", False)])
def test_only_a_virtual_machine_has_the_hypervisor_flag_and_stolen_time(
    simulate: Callable[..., Simulated], host: str, flag: bool
) -> None:
    simulated = simulate(host).at(100)
    assert ("hypervisor" in simulated.text("proc/cpuinfo").split()) == flag
    stolen = int(simulated.text("proc/stat").splitlines()[0].split()[8])
    assert (stolen > 0) == flag


def test_the_cpu_line_is_the_sum_of_all_threads(simulate: Callable[..., Simulated]) -> None:
    lines = simulate().at(77).text("proc/stat").splitlines()
    each = [list(map(int, line.split()[1:])) for line in lines if re.match(r"cpu\d", line)]
    assert len(each) == 224
    assert list(map(int, lines[0].split()[1:])) == [sum(column) for column in zip(*each, strict=True)]


def test_the_jobs_processes_come_and_go_with_the_job(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate()
    pids = {str(4711 + index) for index in range(8)}
    assert pids <= simulated.names("proc")
    fields = simulated.text("proc/4713/stat").rsplit(")", 1)[1].split()
    assert (fields[0], len(fields)) == ("R", 50)
    assert simulated.text("proc/4713/cgroup") == ("0::/system.slice/slurmstepd.scope/job_90017/step_0/user/task_2\n")
    control.switch(simulated.control, "idle", simulated.clock)
    simulated.at(5)
    assert pids.isdisjoint(simulated.names("proc"))
    control.switch(simulated.control, "checkpoint-stall", simulated.clock)
    simulated.at(5 + 30)
    assert simulated.text("proc/4711/stat").split()[2] == "D"


def test_what_the_ranks_write_is_what_the_job_writes(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate(scenario="checkpoint-sync")
    written = []
    for at in (30, 37):
        simulated.at(at)
        written.append(
            sum(
                int(dict(line.split(": ") for line in simulated.text(f"proc/{pid}/io").splitlines())["wchar"])
                for pid in range(4711, 4719)
            )
        )
    assert written[1] - written[0] == pytest.approx(140e9, rel=0.01)


def test_the_kernel_log_grows_by_what_happens_and_never_changes(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate(scenario="xid-79")
    boot = simulated.text("dev/kmsg")
    assert "Xid" not in boot
    inode = (simulated.folder / "dev/kmsg").stat().st_ino
    after = simulated.at(60).text("dev/kmsg")
    assert after.startswith(boot)
    new = [kmsg.parse_record(line) for line in after[len(boot) :].splitlines()]
    assert len(new) == 2
    assert after.splitlines()[-2] == (
        f"3,{len(boot.splitlines())},5020000000,-;NVRM: Xid (PCI:0000:d1:00): 79, pid=4717, name=python3, "
        "GPU has fallen off the bus."
    )
    assert (simulated.folder / "dev/kmsg").stat().st_ino == inode


def test_a_simulator_that_starts_again_goes_on_where_it_was(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate(scenario="xid-79").at(30)
    log = simulated.text("dev/kmsg")
    control.switch(simulated.control, "idle", simulated.clock)
    Tree(simulated.control, str(simulated.folder), simulated.clock).write()
    assert simulated.text("dev/kmsg") == log
    assert "4711" not in simulated.names("proc")


def test_nothing_half_written_lies_beside_a_file(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate().at(10)
    leftovers = [path for path in simulated.folder.rglob("*") if "new" in path.name or "tmp" in path.name]
    assert not leftovers


def test_a_reader_never_sees_a_torn_file(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate("nogpu")
    done = threading.Event()
    torn: list[str] = []

    def read() -> None:
        while not done.is_set():
            text = simulated.text("proc/stat")
            if not text.startswith("cpu  ") or "procs_blocked" not in text:
                torn.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    for second in range(100):
        simulated.at(second)
    done.set()
    reader.join()
    assert not torn


def test_a_host_without_gpus_has_nothing_of_nvidias(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate("nogpu", "tour").at(400)
    assert "driver" not in simulated.names("proc")
    assert "NVRM" not in simulated.text("dev/kmsg")
    assert "infiniband" not in simulated.names("sys/class")


def test_the_loop_writes_on_time_and_ends_with_its_control_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    path = tmp_path / "control.json"
    control.create(str(path), "nogpu", "idle", clock)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.at += seconds
        if len(slept) == 3:
            path.unlink()

    monkeypatch.setattr(time, "sleep", sleep)
    clock.at += 0.1
    with pytest.raises(ConfigError):
        run(str(path), str(tmp_path / "root"), clock)
    assert slept == pytest.approx([0.65, 1.0, 1.0], abs=1e-6)
    assert (tmp_path / "root/proc/uptime").read_text().startswith("5001.75 ")


def work(simulated: Simulated, pid: int) -> dict[str, int]:
    lines = simulated.text(f"proc/{pid}/io").splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def test_a_rank_has_loaders_that_read_and_a_writer_that_writes_in_the_background(
    simulate: Callable[..., Simulated],
) -> None:
    simulated = simulate(scenario="checkpoint-async").at(21)
    assert simulated.text("proc/4711/task/4711/children").split() == ["5000", "5001", "6000"]
    before = {pid: work(simulated, pid) for pid in (4711, 5000, 6000)}
    simulated.at(41)
    grown = {pid: {key: value - before[pid][key] for key, value in work(simulated, pid).items()} for pid in before}
    assert grown[6000]["wchar"] == grown[6000]["write_bytes"] == pytest.approx(20 * 6.9e9 / 8, rel=0.01)
    assert grown[4711]["wchar"] == pytest.approx(20 * 0.1e9 / 8, rel=0.05)
    assert grown[5000]["rchar"] == pytest.approx(20 * 2.4e9 / 16, rel=0.01)
    assert grown[6000]["rchar"] == grown[4711]["rchar"] == grown[5000]["wchar"] == 0


@pytest.mark.parametrize(("host", "point"), [("h100x8", "/data"), ("l40s", "/data"), ("vm", "/data")])
def test_a_rank_that_writes_has_its_file_open_on_the_data_array(
    simulate: Callable[..., Simulated], host: str, point: str
) -> None:
    simulated = simulate(host, "checkpoint-sync").at(33)
    found = procfs.written_mount(simulated.root, 4711)
    assert found is not None
    assert found.point == point
    assert procfs.written_mount(simulated.root, 5000) is None, "loaders write nothing"


def state(simulated: Simulated, pid: int) -> str:
    return simulated.text(f"proc/{pid}/stat").rpartition(")")[2].split()[0]


@pytest.mark.parametrize(
    ("scenario", "at", "rank", "loader", "writer"),
    [
        pytest.param("steady", 10, "R", "R", "S", id="training"),
        pytest.param("checkpoint-sync", 33, "D", "S", "S", id="the ranks write"),
        pytest.param("data-starved", 3, "S", "D", "S", id="the loaders wait for the disk, the ranks for them"),
        pytest.param("nccl-hang", 40, "R", "S", "S", id="in the collective"),
    ],
)
def test_states_say_who_waits_for_what(
    simulate: Callable[..., Simulated], scenario: str, at: float, rank: str, loader: str, writer: str
) -> None:
    simulated = simulate(scenario=scenario).at(at)
    assert (state(simulated, 4711), state(simulated, 5000), state(simulated, 6000)) == (rank, loader, writer)


def test_the_rank_that_does_not_come_is_blocked(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate(scenario="nccl-hang").at(40)
    assert [pid for pid in range(4711, 4719) if state(simulated, pid) == "D"] == [4717]


def test_control_groups_agree_with_the_processes_in_them(simulate: Callable[..., Simulated]) -> None:
    simulated = simulate(scenario="checkpoint-sync")
    group = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_90017/step_0/user/task_0"
    wrote = []
    for at in (31, 36):
        simulated.at(at)
        lines = simulated.text(f"{group}/io.stat").splitlines()
        wrote.append(sum(int(line.split("wbytes=")[1].split()[0]) for line in lines))
    assert wrote[1] - wrote[0] == pytest.approx(5 * 20e9 / 8, rel=0.05)
    assert simulated.text(f"{group}/cgroup.procs").split() == ["4711", "5000", "5001", "6000"]
    control.switch(simulated.control, "idle", simulated.clock)
    simulated.at(60)
    assert not (simulated.folder / group).exists()


def test_version_1_hosts_have_no_unified_groups(simulate: Callable[..., Simulated]) -> None:
    assert not (simulate("oldkernel").folder / "sys/fs/cgroup").exists()


def test_a_congested_network_pauses_the_gpus_ports_and_times_out(simulate: Callable[..., Simulated]) -> None:
    """From 20 s on; the front end's port, which the job does not use, goes on as before."""

    def at(seconds: float, port: str, device: str) -> tuple[float | None, int | None, int | None]:
        simulated.at(seconds)
        network = ethtool.Network(Interfaces(str(simulated.folder)))
        (pause,) = ethtool.parse_physical(network.statistics(port)).pauses
        counters = rdma_counters.PortCounters(simulated.root, device, "1", "Ethernet")
        kinds = rdma_counters.CONGESTION
        return pause.rx_seconds, counters.first(kinds["ack_timeout"]), counters.first(kinds["cnp_handled"])

    simulated = simulate("h100x8", "roce-congested")
    calm, loud, after = (at(seconds, "ens1np0", "mlx5_0") for seconds in (0.0, 20.0, 120.0))
    assert None not in (*calm, *loud, *after)
    paused = [(then[0] or 0.0) - (before[0] or 0.0) for before, then in ((calm, loud), (loud, after))]
    assert paused[0] < 0.02 * 20
    assert paused[1] == pytest.approx(0.11 * 100, rel=0.05)
    assert (loud[1], after[1]) == (0, pytest.approx(40, abs=2))
    assert (after[2] or 0) - (loud[2] or 0) > 1e6
    front = [at(seconds, "eno1np0", "mlx5_8") for seconds in (20.0, 120.0)]
    assert front[0] == front[1]


def test_a_moving_file_says_which_moment_it_tells_of(simulate):
    """However late it is written: the file's time is on the simulation's clock."""
    host = simulate("h100x8", "array-slow")
    for seconds in (25.0, 26.4):
        assert os.stat(host.at(seconds).folder / "proc/diskstats").st_mtime == 5000.0 + seconds
