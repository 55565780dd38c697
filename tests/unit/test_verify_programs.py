"""Measurements by programs that do what they should, are not there, hang, babble, fail, or run out of room."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from support.programs import BABBLE, RECORDED, fio, install, printing

from gpuhost_exporter.collectors import driver, filesystem, gpu_health, pcie, rdma, storage, targets
from gpuhost_exporter.errors import Denied, Hung, Malformed
from gpuhost_exporter.latest import Latest
from gpuhost_exporter.sources import tools
from gpuhost_exporter.targets import Targets
from gpuhost_exporter.verify import fio as fio_room
from gpuhost_exporter.verify import gpus, wire
from gpuhost_exporter.verify.measurement import Asked, Measurement
from gpuhost_exporter.verify.result import Result

NAME = "NVIDIA H100 80GB HBM3"


def gpu_samples(count):
    for index in range(count):
        labels = (str(index), f"GPU-{index}")
        yield driver.GPU_UP(*labels)
        yield driver.GPU_INFO(*labels, NAME, "", "", "", "", "", "none")
        yield pcie.GENERATION_MAX(*labels, "link", value=5)
        yield pcie.WIDTH_MAX(*labels, "link", value=16)
        yield targets.NVLINK_BANDWIDTH(*labels, value=900e9)
        yield targets.MEMORY_BANDWIDTH(*labels, value=3.35e12)


PORT = (rdma.UP("mlx5_0", "1"), rdma.RATE("mlx5_0", "1", value=50e9), rdma.UP("mlx5_1", "1", value=0))
TARGET = (("good", 4e9), ("poor", 2e9))
LATENCY = targets.COLLECTIVE_LATENCY(value=5e-6)


def median(microseconds, hosts="2 hosts"):
    return f"echo 'allreduce of 8 bytes, 2 ranks, {hosts}: median {microseconds} us'"


class Live:
    """The host before, and the member that it would turn out to wait for."""

    def __init__(self, *samples, member=""):
        self.latest = Latest(samples)
        self.member = member

    def limiting(self, device):
        return self.member


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH with no more than the system's commands and what the test installs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for command in ("cat", "sleep", "head"):
        (folder / command).symlink_to(shutil.which(command))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(tools, "has_module", lambda _: True)
    monkeypatch.setattr(wire, "_PATIENCE", 0.0)
    return folder


def outcome(planned):
    """Every result, run or left out."""
    results = []
    for each in planned:
        results += each.run(lambda: None) if isinstance(each, Measurement) else [each]
    return results


def said(results):
    return {f"{result.check} {result.device}".strip(): (result.verdict, result.why) for result in results}


def measured(results):
    return {f"{result.check} {result.device}".strip(): (result.verdict, result.value) for result in results}


def copies(count=2):
    return outcome(gpus.plan(Latest(gpu_samples(count)), Targets.load({}), "quick"))


def wires(peer="node-8", samples=(*PORT, LATENCY), storage=None):
    return outcome(wire.plan(Asked(peer=peer, storage=storage), Latest(samples), "quick"))


def files(folder, live=None, mode="quick"):
    return outcome(fio_room.plan(Asked(folder=str(folder)), live or Live(), mode))


# What they measure.


def test_fio_writes_then_reads_what_was_written_and_leaves_nothing(programs, tmp_path):
    install(programs, "fio", fio())
    data = tmp_path / "data"
    data.mkdir()
    assert measured(files(data)) == {"storage write": ("pass", 3802549769), "storage read": ("pass", 1054801642)}
    assert list(data.iterdir()) == []
    write, read = (tmp_path / "asked").read_text().splitlines()
    assert "--rw=write" in write
    assert "--direct=1" in write
    assert "--rw=read --ioengine=libaio --direct=1" in read
    assert "--size=4194304 " in read, "what lies beyond would be a hole"
    assert f"--directory={data}/gpuhost-verify-" in write


def test_an_array_is_held_to_its_own_target_and_the_slow_member_is_named(programs, tmp_path):
    install(programs, "fio", fio())
    bands = [storage.TARGET("md0", word, band, value=value) for word in ("read", "write") for band, value in TARGET]
    mounts = (
        filesystem.INFO("/", "sda1", "ext4", ""),
        filesystem.INFO(str(tmp_path), "md0p1", "xfs", "md0"),
        filesystem.INFO(f"{tmp_path}-2", "sdb", "xfs", ""),
    )
    results = files(tmp_path, Live(*bands, *mounts, member="nvme2n1"))
    assert [(result.device, result.target) for result in results] == [("md0", 4e9)] * 2
    assert said(results) == {
        "storage write md0": ("warn", "waits for nvme2n1"),
        "storage read md0": ("fail", "waits for nvme2n1: 26 % of what the hardware can do"),
    }


def test_gpus_are_held_to_their_links_and_their_memory(programs):
    install(programs, "nvbandwidth", printing(RECORDED / "nvbandwidth.txt"))
    results = copies()
    found = measured(results)
    assert found["host to GPU GPU 0"] == ("pass", 55.33e9)
    assert found["GPU to host GPU 1"] == ("fail", 31.02e9)
    assert found["GPU to GPU GPU 1"] == ("pass", 393.48e9)
    assert found["GPU memory copy GPU 0"] == ("pass", 2 * 1312.44e9)
    assert said(results)["GPU to host GPU 1"][1] == "49 % of what the hardware can do"
    assert not [result for result in results if result.verdict == "skipped" and result.check != "NCCL all-reduce"]


@pytest.mark.parametrize(("count", "target"), [(8, 0.97 * 450e9), (2, None)])
def test_an_all_reduce_has_a_target_where_it_is_known_for_so_many_gpus(programs, count, target):
    install(programs, "all_reduce_perf", printing(RECORDED / "all_reduce_perf.txt"))
    (result,) = [result for result in copies(count) if result.check == "NCCL all-reduce"]
    assert (result.verdict, result.value, result.target) == ("pass", 473.88e9, target)


def test_wrong_sums_fail_however_fast_they_come(programs, tmp_path):
    text = (RECORDED / "all_reduce_perf.txt").read_text().replace("473.88      0", "473.88      9")
    (tmp_path / "wrong.txt").write_text(text)
    install(programs, "all_reduce_perf", printing(tmp_path / "wrong.txt"))
    assert said(copies(8))["NCCL all-reduce"] == ("fail", "sums came out wrong")


def test_the_way_to_a_peer_is_measured_on_ports_that_are_up(programs, tmp_path):
    for name in ("ib_write_bw", "ib_write_lat"):
        install(programs, name, f'echo "$@" >{tmp_path}/{name}; {printing(RECORDED / f"{name}.txt")}')
    install(programs, "mpirun", f'echo "$@" >{tmp_path}/asked; {median(2.31)}')
    results = wires(storage="/state")
    assert measured(results) == {
        "RDMA write mlx5_0 port 1": ("pass", pytest.approx(48.98e9, rel=1e-3)),
        "RDMA write latency mlx5_0 port 1": ("pass", pytest.approx(1.49e-6)),
        "MPI all-reduce": ("pass", pytest.approx(2.31e-6)),
    }
    assert results[-1].target == 5e-6
    assert (tmp_path / "ib_write_bw").read_text() == "-d mlx5_0 -i 1 -F -D 20 -f 1 --report_gbits node-8\n"
    assert (tmp_path / "ib_write_lat").read_text() == "-d mlx5_0 -i 1 -F node-8\n"
    program = f"{sys.executable} -c {tools.starting_this_package()} allreduce --storage.path=/state\n"
    assert (tmp_path / "asked").read_text() == f"-np 2 --host localhost,node-8 {program}"


@pytest.mark.parametrize(("mode", "seconds"), [("quick", 120), ("full", 600)])
@pytest.mark.parametrize(("ports", "of_each"), [(1, (20, 20)), (8, (3, 20)), (12, (3, 13))])
def test_a_run_takes_no_longer_than_its_mode_says(programs, tmp_path, mode, seconds, ports, of_each):
    """Of 8 GPUs and up to 8 ports, with every program there; more ports are told to take longer."""
    for program in ALL:
        install(programs, program, "true")
    live = Live(*gpu_samples(8), *(rdma.UP(f"mlx5_{n}", "1") for n in range(ports)))
    planned = [
        *fio_room.plan(Asked(folder=str(tmp_path)), live, mode),
        *gpus.plan(live.latest, Targets.load({}), mode),
        *wire.plan(Asked(peer="node-8"), live.latest, mode),
    ]
    assert all(isinstance(each, Measurement) for each in planned), "nothing is left out"
    assert len(planned) == 4 + 2 * ports
    writing = [each.seconds for each in planned if each.name.startswith("ib_write_bw")]
    assert writing == [of_each[mode == "full"] + 0.75] * ports
    assert (sum(each.seconds for each in planned) <= seconds) == (ports <= 8)


@pytest.mark.parametrize(("latency", "verdict"), [("4.9", "pass"), ("7.5", "warn"), ("10.5", "fail")])
def test_a_slow_collective_is_told(programs, latency, verdict):
    install(programs, "mpirun", median(latency))
    assert {result.check: result.verdict for result in wires()}["MPI all-reduce"] == verdict


# What goes wrong.

ALL = {
    "fio": ("storage write", "storage read"),
    "nvbandwidth": ("host to GPU", "GPU to host", "GPU to GPU", "GPU memory copy"),
    "all_reduce_perf": ("NCCL all-reduce",),
    "ib_write_bw": ("RDMA write",),
    "ib_write_lat": ("RDMA write latency",),
    "mpirun": ("MPI all-reduce",),
}


def running(pid):
    """Whether it still does; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(file, begin):
    child = int(file.read_text())
    while running(child):
        assert time.monotonic() - begin < 5, "killed, and gone as soon as the kernel comes to it"


def of_program(program, tmp_path):
    every = [*files(tmp_path), *copies(), *wires()]
    return [result for result in every if result.check in ALL[program]]


@pytest.mark.parametrize("program", ALL)
def test_a_program_that_is_missing_is_told_and_holds_nothing_up(programs, tmp_path, program):
    results = of_program(program, tmp_path)
    assert {result.verdict for result in results} == {"skipped"}
    assert all("is not installed" in result.why for result in results)
    assert {result.check for result in results} == set(ALL[program])


@pytest.mark.parametrize("program", ALL)
def test_a_program_that_hangs_is_killed_with_its_children_and_fails_its_check(programs, tmp_path, monkeypatch, program):
    for room in (fio_room, gpus, wire):
        monkeypatch.setattr(room, "ROOM_TO_HANG", 0.01)
    install(programs, program, f"sleep 987 & echo $! >{tmp_path}/child; sleep 987")
    begin = time.monotonic()
    first, *rest = of_program(program, tmp_path)
    assert (first.verdict, first.why[:16]) == ("fail", "no result within")
    assert {result.verdict for result in rest} <= {"skipped"}, "what was not measured is not judged"
    gone(tmp_path / "child", begin)
    assert not list(tmp_path.glob("gpuhost-verify-*"))


def test_what_a_program_started_in_a_group_of_its_own_ends_with_it(programs, tmp_path):
    """mpirun does so with its ranks."""
    script = f"""
import os, time
if os.fork() == 0:
    os.setpgid(0, 0)
    open("{tmp_path}/child", "w").write(str(os.getpid()))
time.sleep(987)
"""
    begin = time.monotonic()
    with pytest.raises(Hung):
        tools.run((sys.executable, "-c", script), 1.0, lambda: None)
    gone(tmp_path / "child", begin)


def test_a_program_is_asked_to_end_before_it_is_killed(programs, tmp_path):
    """mpirun takes its ranks on other hosts with it only when it is asked."""
    install(programs, "polite", f"trap 'echo yes >{tmp_path}/asked; exit' TERM; while :; do sleep 0.05; done")
    with pytest.raises(Hung):
        tools.run(("polite",), 0.5, lambda: None)
    assert (tmp_path / "asked").read_text() == "yes\n"


@pytest.mark.parametrize("program", ALL)
@pytest.mark.parametrize(
    ("first_line", "script", "verdict", "why"),
    [
        pytest.param("#!/none/python", "", "skipped", "No such file or directory", id="cannot start"),
        pytest.param("\0\0not for this machine", "", "skipped", "Exec format error", id="of another machine"),
        pytest.param("#!/bin/sh", "kill -SEGV $$", "fail", "ended with -11: no word", id="crashes"),
        pytest.param("#!/bin/sh", "true", "warn", "answer not understood: ", id="says nothing"),
    ],
)
def test_a_program_that_is_broken_is_told(programs, tmp_path, program, first_line, script, verdict, why):
    install(programs, program, script)
    (programs / program).write_text(f"{first_line}\n{script}\n")
    first, *rest = of_program(program, tmp_path)
    assert (first.verdict, first.value) == (verdict, None)
    assert why in first.why
    assert {(result.verdict, result.value) for result in rest} <= {("skipped", None)}


@pytest.mark.parametrize("program", ALL)
def test_a_program_that_babbles_warns_and_measures_nothing(programs, tmp_path, program):
    install(programs, program, BABBLE)
    first, *rest = of_program(program, tmp_path)
    assert (first.verdict, first.value) == ("warn", None)
    assert first.why.startswith("answer not understood: ")
    assert {(result.verdict, result.value) for result in rest} <= {("skipped", None)}


@pytest.mark.parametrize("program", ALL)
def test_a_program_that_fails_fails_its_check_with_its_own_words(programs, tmp_path, program):
    install(programs, program, "echo some figures 12; echo 'CUDA error: out of memory' >&2; exit 3")
    first, *rest = of_program(program, tmp_path)
    assert first.verdict == "fail"
    assert "ended with 3: CUDA error: out of memory" in first.why
    assert {result.verdict for result in rest} <= {"skipped"}


def test_a_peer_that_does_not_listen_is_no_fault_of_this_host(programs):
    install(programs, "ib_write_bw", 'echo "Couldn\'t connect to node-8:18515" >&2; exit 1')
    assert said(wires())["RDMA write mlx5_0 port 1"] == (
        "skipped",
        "nobody answers on node-8: run ib_write_bw -d DEVICE there, once for each port",
    )


def test_a_peer_is_given_time_to_start_its_next_program_but_not_for_ever(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "_PATIENCE", 20.0)
    late = f'[ -e {tmp_path}/there ] || {{ : >{tmp_path}/there; echo "Couldn\'t connect to node-8" >&2; exit 1; }}'
    install(programs, "ib_write_bw", f"{late}; {printing(RECORDED / 'ib_write_bw.txt')}")
    assert said(wires())["RDMA write mlx5_0 port 1"][0] == "pass"
    monkeypatch.setattr(wire, "_PATIENCE", 0.4)
    install(programs, "ib_write_bw", f'echo x >>{tmp_path}/tries; echo "Couldn\'t connect to node-8" >&2; exit 1')
    ports = [rdma.UP(f"mlx5_{place}", "1") for place in range(4)]
    assert {why[:15] for check, (_, why) in said(wires(samples=ports)).items() if "mlx5" in check} == {
        "nobody answers "
    }
    assert 5 <= len((tmp_path / "tries").read_text().split()) <= 7, "the first port waits; the others try once"


ORTE = "ORTE was unable to reliably start one or more daemons."


@pytest.mark.parametrize(
    ("script", "verdict", "why"),
    [
        pytest.param(
            f"echo '{ORTE}' >&2; exit 255", "skipped", "mpirun starts nothing on node-8: it needs ssh", id="ssh"
        ),
        pytest.param(
            "echo 'gpuhost-exporter: mpi4py: no module' >&2; echo ------- >&2; exit 2",
            "skipped",
            "mpi4py: no module",
            id="the peer lacks mpi4py",
        ),
        pytest.param(median(0.4, "1 host"), "skipped", "node-8 is this host: name another", id="the same host"),
        pytest.param(f"{median(2.31)}; echo 'not kept: /var: full'; exit 1", "pass", "", id="not kept"),
        pytest.param(
            "echo 'MPI_ABORT was invoked' >&2; echo ---- >&2; exit 9", "fail", "ended with 9: MPI_ABORT", id="aborts"
        ),
    ],
)
def test_an_mpi_job_that_does_not_come_about_is_told_from_one_that_fails(programs, script, verdict, why):
    install(programs, "mpirun", script)
    result = said(wires())["MPI all-reduce"]
    assert result[0] == verdict
    assert why in result[1]


def test_the_rank_is_this_package_though_pythons_path_does_not_have_it(programs, tmp_path):
    script = f'shift 4; python=$1; shift; unset PYTHONPATH; cd /; exec "$python" -S "$@" 2>{tmp_path}/errors'
    install(programs, "mpirun", script)
    wires()
    told = (tmp_path / "errors").read_text()
    assert told.startswith("gpuhost-exporter: mpi4py: No module named 'mpi4py'"), "it has come to what it is for"


@pytest.mark.parametrize(
    "said_by_python",
    ["/usr/bin/python3: No module named gpuhost_exporter", "ModuleNotFoundError: No module named 'gpuhost_exporter'"],
)
def test_a_peer_without_this_package_is_no_fault_of_this_host(programs, said_by_python):
    install(programs, "mpirun", f'echo "{said_by_python}" >&2; echo ------ >&2; exit 1')
    verdict, why = said(wires())["MPI all-reduce"]
    assert verdict == "skipped"
    assert why.startswith("this host or node-8 lacks Python's module gpuhost_exporter for ")


def test_without_mpi4py_the_all_reduce_says_what_to_install(programs, monkeypatch):
    monkeypatch.setattr(tools, "has_module", lambda name: name != "mpi4py")
    install(programs, "mpirun", "exit 1")
    assert said(wires())["MPI all-reduce"] == (
        "skipped",
        "mpi4py is not installed: pip install 'gpuhost-exporter[mpi]'",
    )


def test_without_peer_folder_port_or_gpu_each_check_says_what_to_give(programs):
    install(programs, "fio", fio())
    install(programs, "ib_write_bw", "true")
    assert {why for _, why in said(wires(peer=None)).values()} == {"name a host on the same fabric: --peer HOST"}
    assert said(wires(samples=()))["RDMA write"] == ("skipped", "no RDMA port is up")
    assert {why for _, why in said(outcome(fio_room.plan(Asked(), Live(), "quick"))).values()} == {
        "name a folder on the array: --directory DIR"
    }
    assert {why for _, why in said(copies(0)).values()} == {"no GPU"}
    assert said(copies(1))["NCCL all-reduce"] == ("skipped", "one GPU only")


def test_a_raw_device_and_a_file_are_refused_before_anything_is_started(programs, tmp_path):
    install(programs, "fio", f"touch {tmp_path}/started")
    file = tmp_path / "file"
    file.write_text("precious")
    for path in ("/dev/null", file, tmp_path / "absent"):
        assert said(files(path))["storage write"] == ("skipped", f"{path}: not a folder")
    assert file.read_text() == "precious"
    assert not (tmp_path / "started").exists()


def test_a_full_disk_is_seen_before_and_while_writing(programs, tmp_path, monkeypatch):
    install(programs, "fio", f"cat {RECORDED}/fio-full-disk.txt; exit 2")
    assert said(files(tmp_path))["storage write"] == ("skipped", "fio: no space left on the file system")
    monkeypatch.setattr(tools, "free_bytes", lambda _: 10**9)
    assert said(files(tmp_path)) == {
        "storage write": ("skipped", f"{tmp_path}: 1.0 GB free, 2.1 needed"),
        "storage read": ("skipped", "there was nothing written to read"),
    }
    assert not list(tmp_path.glob("gpuhost-verify-*"))


def test_a_folder_that_takes_no_files_is_told(programs):
    install(programs, "fio", fio())
    results = files("/proc")
    assert {result.verdict for result in results} == {"skipped"}
    assert results[0].why.startswith("/proc: ")


def test_what_floods_is_ended(programs):
    install(programs, "flood", "while :; do cat /bin/sh /bin/sh /bin/sh /bin/sh; done")
    with pytest.raises(Malformed, match="4 MiB of output"):
        tools.run(("flood",), 20.0, lambda: None)


def test_an_interruption_ends_the_program_and_removes_its_files(programs, tmp_path):
    install(programs, "fio", "sleep 987")

    def interrupt():
        raise KeyboardInterrupt

    (planned,) = fio_room.plan(Asked(folder=str(tmp_path)), Live(), "quick")
    with pytest.raises(KeyboardInterrupt):
        planned.run(interrupt)
    assert not list(tmp_path.glob("gpuhost-verify-*"))


def test_a_program_without_permission_to_run_is_denied(tmp_path):
    file = tmp_path / "tool"
    file.write_text("#!/bin/sh\n")
    with pytest.raises(Denied):
        tools.run((str(file),), 5.0, lambda: None)


def test_a_program_is_given_no_more_than_its_time(programs):
    with pytest.raises(Hung, match="no result within 0 s"):
        tools.run(("sleep", "9"), 0.2, lambda: None)


def nvbandwidth(tmp_path, programs, **matrices):
    """A record with these matrices in place of the two GPUs' own; what it was started with is in `asked`."""
    record = json.loads((RECORDED / "nvbandwidth.txt").read_text())
    for case in record["nvbandwidth"]["testcases"]:
        case["bandwidth_matrix"] = matrices.get(case["name"], case["bandwidth_matrix"])
    (tmp_path / "record").write_text(json.dumps(record))
    shown = f"echo ${{CUDA_VISIBLE_DEVICES-unset}} $CUDA_DEVICE_ORDER >{tmp_path}/asked"
    install(programs, "nvbandwidth", f"{shown}; {printing(tmp_path / 'record')}")


def of_copies(check, samples):
    found = outcome(gpus.plan(Latest(samples), Targets.load({}), "quick"))
    return {result.device: (result.verdict, result.why) for result in found if result.check == check}


def test_gpus_that_cuda_does_not_see_fail_and_no_shell_hides_any(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    nvbandwidth(tmp_path, programs)
    samples = (*gpu_samples(8), driver.GPU_UP("6", "GPU-6", value=0), gpu_health.MIG_ENABLED("7", "GPU-7"))
    unseen = ("fail", "nvbandwidth: it sees 2 of 8 GPUs")
    expected = dict.fromkeys((f"GPU {index}" for index in range(2, 6)), unseen)
    expected |= {"GPU 6": ("skipped", "the GPU does not answer"), "GPU 7": ("skipped", "partitioned (MIG)")}
    for check, _ in gpus.COPIES.values():
        found = of_copies(check, samples)
        assert set(found) == {f"GPU {index}" for index in range(8)}, "a line of each GPU"
        assert {device: found[device] for device in expected} == expected
        assert "skipped" not in (found["GPU 0"][0], found["GPU 1"][0])
    assert (tmp_path / "asked").read_text() == "unset PCI_BUS_ID\n"


def test_a_cell_without_a_figure_fails_its_gpu(programs, tmp_path):
    nvbandwidth(tmp_path, programs, host_to_device_memcpy_ce=[["55.33", "N/A"]])
    found = of_copies("host to GPU", gpu_samples(2))
    assert found == {"GPU 0": ("pass", ""), "GPU 1": ("fail", "nvbandwidth: no figure of this GPU")}


PAIRS = [["N/A", "393.1", "N/A"], ["393.2", "N/A", "393.3"], ["N/A", "393.4", "N/A"]]
ALONE = [["N/A", "50.1", "N/A"], ["50.2", "N/A", "N/A"], ["N/A", "N/A", "N/A"]]


def test_a_pair_without_a_copy_fails_where_there_is_nvlink_and_is_noted_where_there_is_none(programs, tmp_path):
    nvbandwidth(tmp_path, programs, device_to_device_memcpy_read_ce=PAIRS)
    assert of_copies("GPU to GPU", gpu_samples(3)) == {
        "GPU 0": ("fail", "no copy to GPUs 2"),
        "GPU 1": ("pass", ""),
        "GPU 2": ("fail", "no copy to GPUs 0"),
    }
    nvbandwidth(tmp_path, programs, device_to_device_memcpy_read_ce=ALONE)
    without = [sample for sample in gpu_samples(3) if sample.spec is not targets.NVLINK_BANDWIDTH]
    assert of_copies("GPU to GPU", without) == {
        "GPU 0": ("pass", "no target: held against the baseline; no copy to GPUs 2"),
        "GPU 1": ("pass", "no target: held against the baseline; no copy to GPUs 2"),
        "GPU 2": ("skipped", "no GPU can be reached from it directly"),
    }


def test_results_of_nvbandwidth_that_it_left_out_or_failed_are_told(programs, tmp_path):
    text = (RECORDED / "nvbandwidth.txt").read_text()
    text = text.replace(
        '"name" : "device_local_copy",\n            "status" : "Passed"',
        '"name" : "device_local_copy",\n            "status" : "Error"',
    )
    text = text.replace('[ [ "N/A", "393.66" ], [ "393.48", "N/A" ] ]', "[]").replace(
        '"name" : "device_to_device_memcpy_read_ce",\n            "status" : "Passed"',
        '"name" : "device_to_device_memcpy_read_ce",\n            "status" : "Waived"',
    )
    (tmp_path / "some.txt").write_text(text)
    install(programs, "nvbandwidth", printing(tmp_path / "some.txt"))
    found = said(copies())
    assert found["GPU to GPU"] == ("fail", "nvbandwidth: waived, though the GPUs have NVLink")
    assert found["GPU memory copy"] == ("fail", "nvbandwidth reports an error")
    assert found["host to GPU GPU 0"] == ("pass", "")
    assert Result("GPU to GPU", "GPU 0", "pass") not in copies()
