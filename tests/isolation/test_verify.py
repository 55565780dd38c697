"""`verify` as a process: its report, its baseline, programs on PATH, and being interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from support.daemon import Daemon, select, value
from support.programs import RECORDED, fio, install
from support.simulated import arguments

from gpuhost_exporter.table import WIDTH
from gpuhost_exporter.verify.passive import CHECKS


def judged(done):
    """Check and device -> verdict."""
    told = json.loads(done.stdout)
    return {(result["check"], result.get("device", "")): result["verdict"] for result in told["results"]}


def test_the_report_of_a_broken_host_fits_a_mail(run, tmp_path):
    done = run("verify", "--passive", *arguments(tmp_path, "h100x8", "nvlink-down", elapsed=30))
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].startswith("SIMULATED host h100x8:nvlink-down")
    assert lines[1].startswith("REJECTED (passive, ")
    assert max(map(len, lines)) <= WIDTH
    assert [line for line in lines if line.startswith("NVLink, GPU 3 ") and line.endswith("  fail")]
    assert [line for line in lines if line.startswith("fail  NVLink, GPU 3: 17 of 18 NVLinks active")]


@pytest.fixture
def programs(tmp_path, environment):
    """fio that prints what was recorded, on the PATH of the command."""
    install(tmp_path / "bin", "fio", fio())
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"
    (tmp_path / "data").mkdir()
    return tmp_path / "bin"


def storage(done):
    return {check: verdict for (check, _), verdict in judged(done).items() if check.startswith("storage")}


def write(done):
    """What was measured of writing."""
    (result,) = [result for result in json.loads(done.stdout)["results"] if result["check"] == "storage write"]
    return result


def test_a_run_becomes_the_baseline_of_the_next_and_is_exported(run, programs, tmp_path):
    first = run("verify", "--json", "--directory=data", "--junit=report.xml")
    assert (first.returncode, first.stderr) == (0, "fio: 30 s left in all\n")
    assert storage(first) == {"storage write": "pass", "storage read": "pass"}
    assert b'testcase classname="gpuhost.quick" name="storage write' in (tmp_path / "report.xml").read_bytes()
    slow = (RECORDED / "fio-write.txt").read_text().replace("3802549769", "2802549769")
    (tmp_path / "slow.txt").write_text(slow)
    install(programs, "fio", fio().replace(f"cat {RECORDED}/fio-$direction.txt", f"cat {tmp_path}/slow.txt"))
    second = run("verify", "--json", "--directory=data")
    assert storage(second) == {"storage write": "warn", "storage read": "warn"}
    written = write(second)
    assert (written["baseline"], written["why"]) == (3802549769, "74 % of what this host did before")
    assert not list((tmp_path / "data").iterdir())
    with Daemon(tmp_path) as daemon:
        series = daemon.wait_until(lambda seen: value(seen, "gpuhost_verify_accepted") is not None)
    assert time.time() - value(series, "gpuhost_verify_timestamp_seconds", mode="quick") < 60
    assert value(series, "gpuhost_verify_bytes_per_second", check="storage write") == 2802549769
    assert value(series, "gpuhost_verify_baseline_bytes_per_second", check="storage write") == 3802549769
    warned = {labels["check"] for labels in map(dict, select(series, "gpuhost_verify_problem", verdict="warn"))}
    assert warned - {"platform"} == {"storage write", "storage read"}, "this machine may be a virtual one"
    assert value(series, "gpuhost_verify_checks", verdict="warn") == len(warned)
    assert not select(series, "gpuhost_verify_problem", verdict="fail")


def test_to_look_only_leaves_baseline_and_folder_alone(run, programs, tmp_path):
    done = run("verify", "--passive", "--json", "--directory=data")
    assert done.returncode == 0
    assert {check for check, _ in judged(done)} == {name for name, _, _ in CHECKS}
    assert not (tmp_path / "state" / "gpuhost-exporter" / "verify.json").exists()


def test_a_baseline_that_cannot_be_kept_is_told_and_the_judgement_stands(run, programs, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("verify", "--directory=data", "--storage.path=file/state")
    assert done.returncode == 0
    assert "not kept as a baseline: file/state: " in done.stderr


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        pytest.param({"version": 1, "data": {"baseline": {"storage write": 9e9}}}, False, id="an older form"),
        pytest.param({"version": 1, "data": {"format": 9, "last": 3, "baseline": 7}}, False, id="a newer form"),
        pytest.param(
            {"version": 1, "data": {"baseline": {"quick": {"storage write": {"DEVICE": 4e9}}}}}, True, id="ours"
        ),
        pytest.param({"version": 2, "data": {}}, False, id="another state file"),
        pytest.param("no JSON", False, id="garbage"),
    ],
)
def test_a_result_file_of_another_version_costs_its_baseline_and_nothing_else(run, programs, tmp_path, stored, kept):
    device = write(run("verify", "--json", "--directory=data")).get("device", "")
    file = tmp_path / "state" / "gpuhost-exporter" / "verify.json"
    file.write_text(json.dumps(stored).replace("DEVICE", device))
    done = run("verify", "--json", "--directory=data")
    assert done.returncode == 0
    assert write(done).get("baseline") == (4e9 if kept else None)
    with Daemon(tmp_path) as daemon:
        series = daemon.wait_until(lambda seen: value(seen, "gpuhost_verify_accepted") is not None)
    assert value(series, "gpuhost_verify_bytes_per_second", check="storage write") == 3802549769


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_leaves_neither_files_nor_programs(environment, programs, tmp_path, number):
    install(programs, "fio", f"echo $$ >{tmp_path}/started; exec sleep 987")
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuhost_exporter", "verify", "--directory=data"],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list((tmp_path / "data").iterdir())
    process.send_signal(number)
    output, errors = process.communicate(timeout=10)
    assert (process.returncode, output) == (130, b"")
    assert b"Traceback" not in errors
    assert b"interrupted: nothing is judged or kept, and nothing left behind\n" in errors
    assert not list((tmp_path / "data").iterdir())
    assert not os.path.exists(f"/proc/{int((tmp_path / 'started').read_text())}")
    assert not (tmp_path / "state" / "gpuhost-exporter" / "verify.json").exists()


def test_a_second_interruption_does_not_break_off_what_the_first_cleans_up(environment, programs, tmp_path):
    """Two seconds are given to a program that takes no notice, and Ctrl-C again is what people do meanwhile."""
    install(programs, "fio", f"trap '' TERM INT HUP; echo $$ >{tmp_path}/started; while :; do sleep 0.1; done")
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuhost_exporter", "verify", "--directory=data", "--junit=report.xml"],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    program = int((tmp_path / "started").read_text())
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    assert os.path.exists(f"/proc/{program}"), "it takes no notice of being asked"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, b"")
    assert errors.endswith(b"interrupted: nothing is judged or kept, and nothing left behind\n")
    assert not os.path.exists(f"/proc/{program}")
    assert not list((tmp_path / "data").iterdir())
    assert not (tmp_path / "report.xml").exists()


# Of the six random bytes in the folder's name, so that it can be told from those of whoever else simulates here.
NAMED = """
import os, sys
random = os.urandom
os.urandom = lambda count: bytes.fromhex(sys.argv[-1]) if count == 6 else random(count)
from gpuhost_exporter.cli import main
sys.exit(main(sys.argv[1:-1]))
"""


def test_an_interruption_while_it_only_looks_leaves_no_simulated_host(environment, tmp_path):
    name = os.urandom(6).hex()
    folders = [f"{parent}/gpuhost-simulation-{name}" for parent in ("/dev/shm", tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", NAMED, "verify", "--passive", "--simulate=h100x8", name],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any(map(os.path.exists, folders)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, b"")
    assert errors == b"interrupted: nothing is judged or kept, and nothing left behind\n"
    assert not any(map(os.path.exists, folders))


REJECTED = ("verify", "--passive", "--simulate=h100x8:gpu-lost")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_rejection_stays_one_though_nobody_reads_it(run, form):
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = run(*REJECTED, *form, stdout=theirs)
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_cannot_be_told_is_no_acceptance(run):
    with open("/dev/full", "w") as full:
        done = run("verify", "--passive", "--simulate=l40s", stdout=full)
    assert (done.returncode, done.stderr) == (2, "gpuhost-exporter: standard output: No space left on device\n")


def test_without_a_temporary_folder_nothing_is_judged(run, programs, environment, tmp_path):
    script = (
        "import tempfile, sys; tempfile.tempdir = '/none'; from gpuhost_exporter.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "verify", "--directory=data"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such file or directory" in done.stderr.splitlines()[-1]


def test_a_report_that_cannot_be_written_costs_nothing_that_was_measured(run, programs, tmp_path):
    done = run("verify", "--json", "--directory=data", "--junit=/dev/full")
    assert done.returncode == 2
    assert storage(done) == {"storage write": "pass", "storage read": "pass"}
    assert done.stderr.endswith("gpuhost-exporter: --junit /dev/full: No space left on device\n")
    kept = json.loads((tmp_path / "state" / "gpuhost-exporter" / "verify.json").read_text())["data"]
    assert set(kept["baseline"]["quick"]) == {"storage write", "storage read"}


def test_a_report_of_before_stays_where_nothing_is_judged_and_is_replaced_whole(run, tmp_path):
    report = tmp_path / "report.xml"
    report.write_text("x" * 100_000)
    assert run("verify", "--passive", "--junit=report.xml", "--simulate=h200").returncode == 2
    assert report.read_text() == "x" * 100_000
    assert run("verify", "--passive", "--junit=report.xml", "--simulate=nogpu").returncode == 0
    assert report.read_text().startswith("<?xml")
    assert report.read_text().endswith("</testsuite>")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--passive", "--full"), "not allowed with argument"),
        (("--directory=",), "expected a text"),
        (("--simulate=h200",), "simulated host 'h200'"),
        (("--passive", "--simulate=nogpu", "--junit=/none/report.xml"), "--junit /none/report.xml: No such file"),
    ],
)
def test_wrong_usage_is_one_line_and_judges_nothing(run, arguments, said):
    done = run("verify", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.slow
def test_fio_for_real_on_this_disk(run, environment, tmp_path):
    begin = time.monotonic()
    environment["TMPDIR"] = str(tmp_path)
    (tmp_path / "data").mkdir()
    process = subprocess.run(
        [sys.executable, "-m", "gpuhost_exporter", "verify", "--json", "--directory=data"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    if "fio is not installed" in process.stdout:
        pytest.skip("fio is not installed (apt-get install fio)")
    rates = {
        result["check"]: result.get("value")
        for result in json.loads(process.stdout)["results"]
        if result["check"].startswith("storage")
    }
    print(f"{rates} in {time.monotonic() - begin:.0f} s")
    assert all(rate and rate > 10e6 for rate in rates.values()), process.stdout
    assert time.monotonic() - begin < 90
    assert not list((tmp_path / "data").iterdir())
    assert re.match(r"fio: 30 s left", process.stderr)
