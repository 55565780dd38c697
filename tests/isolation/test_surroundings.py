"""The real process where what is around it is not as it should be: state directory, streams, signals, rights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.daemon import Daemon, descendants, select, value
from support.simulated import arguments
from support.web import wait_for

QUICK = "[collector.inventory]\ninterval = 0.3\n"
NOBODY = 65534


@pytest.fixture
def start(tmp_path):
    """A daemon on a simulated host whose inventory is polled three times a second."""
    running = []

    def run(*more, host="vm", **named):
        (tmp_path / "exporter.toml").write_text(QUICK)
        running.append(
            Daemon(tmp_path, f"--config.file={tmp_path}/exporter.toml", f"--simulate={host}", *more, **named)
        )
        return running[-1]

    yield run
    for daemon in running:
        daemon.stop()


def shell(words):
    """Starts what follows through a shell that first does this."""
    return ("sh", "-c", f'{words}; exec "$@"', "sh")


def learned(series):
    return value(series, "gpuhost_inventory_expected", kind="gpus") == 8


def test_a_daemon_that_stood_still_goes_on(start):
    """As a debugger, a frozen container or a suspended machine has it: longer than between two looks."""
    daemon = start(environment={"WATCHDOG_USEC": "1000000"})
    daemon.ready()
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    polls = "gpuhost_collector_polls_total"
    daemon.process.send_signal(signal.SIGCONT)
    before = value(daemon.series(), polls, collector="inventory")
    daemon.wait_until(lambda seen: value(seen, polls, collector="inventory") > before + 2, 10)
    assert daemon.process.poll() is None
    assert "Traceback" not in daemon.log()


# The state directory.


def mounted(folder, options):
    """Starts what follows where the folder is a small file system of its own."""
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if os.geteuid() != 0 or probe.returncode != 0:
        pytest.skip("mounting a file system for one process needs root")
    return ("unshare", "-m", *shell(f"mount -t tmpfs -o {options} none {folder} && touch {folder}/.lock"))


def test_a_full_state_directory_stops_nothing_and_is_written_once_there_is_room(start, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    begin = mounted(folder, "size=64k")
    fill = shell(f"cat /dev/zero 2>/dev/null >{folder}/filler")
    daemon = start(f"--storage.path={folder}", through=(*begin, *fill))
    inside = Path(f"/proc/{daemon.process.pid}/root{folder}")
    series = daemon.wait_until(lambda seen: value(seen, "gpuhost_state_writable") == 0 and learned(seen), 10)
    assert value(series, "gpuhost_collector_up", collector="inventory") == 1
    assert len(select(series, "gpuhost_gpu_power_watts")) == 8
    time.sleep(1.5)
    assert daemon.log().count("state is kept in memory only") == 1
    assert "No space left on device" in daemon.log()
    assert not (inside / "inventory.json").exists(), "nothing rather than half of it"
    (inside / "filler").unlink()
    daemon.wait_until(lambda seen: value(seen, "gpuhost_state_writable") == 1, 10)
    assert len(json.loads((inside / "inventory.json").read_text())["data"]["gpus"]["devices"]) == 8
    assert daemon.log().count("state is written to") == 1


def test_a_read_only_state_directory_stops_nothing_and_doctor_is_not_needed_to_see_it(start, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    begin = mounted(folder, "size=64k")
    daemon = start(f"--storage.path={folder}", through=(*begin, *shell(f"mount -o remount,ro {folder}")))
    series = daemon.wait_until(lambda seen: value(seen, "gpuhost_state_writable") == 0 and learned(seen), 10)
    assert not select(series, "gpuhost_inventory_missing")
    assert daemon.log().count("Read-only file system") == 1
    assert b"State directory" in daemon.get("/")[1]


def test_a_file_where_the_state_directory_should_be_is_left_alone(start, tmp_path):
    (tmp_path / "kept").write_text("mine\n")
    daemon = start(f"--storage.path={tmp_path}/kept")
    daemon.wait_until(lambda seen: value(seen, "gpuhost_state_writable") == 0 and learned(seen), 10)
    assert (tmp_path / "kept").read_text() == "mine\n"
    assert daemon.stop() == 0


@pytest.mark.parametrize("name", ["inventory", "kernel_log"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"version": 1, "data": {"gpus": {"devi', id="torn"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00" * 4096, id="zeros"),
        pytest.param(b"[" * 100000, id="bottomless"),
        pytest.param(b'{"version": 2, "data": {"gpus": {}}}', id="of a newer version"),
    ],
)
def test_a_state_file_that_cannot_be_understood_is_moved_aside(start, tmp_path, name, content):
    folder = tmp_path / "kept"
    folder.mkdir()
    file = folder / f"{name}.json"
    file.write_bytes(content)
    daemon = start(f"--storage.path={folder}")
    series = daemon.wait_until(learned, 10)
    assert value(series, "gpuhost_state_writable") == 1
    assert not select(series, "gpuhost_inventory_missing")
    assert (folder / f"{name}.json.corrupt").read_bytes() == content
    assert daemon.log().count(f"moved aside as {file}.corrupt") == 1
    assert not select(series, "gpuhost_collector_errors_total", kind="internal")


@pytest.mark.parametrize(
    "data",
    [
        {"gpus": 3},
        {"gpus": {"devices": [], "most": "many"}},
        {"gpus": {"devices": {"GPU-x": 5, "": {}}, "most": -1}, "other": None},
        {"drives": {"devices": {"S1": {"bdf": 7}}, "most": 10**30}},
    ],
    ids=["a number", "a list", "no details", "too many"],
)
def test_state_of_another_form_counts_as_not_learned(start, tmp_path, data):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "inventory.json").write_text(json.dumps({"version": 1, "data": data}))
    daemon = start(f"--storage.path={tmp_path}/kept")
    series = daemon.wait_until(lambda seen: (value(seen, "gpuhost_inventory_expected", kind="gpus") or 0) >= 8, 10)
    assert value(series, "gpuhost_collector_up", collector="inventory") == 1
    assert not select(series, "gpuhost_collector_errors_total", kind="internal")


def test_two_daemons_share_a_state_directory_and_release_reaches_the_first(start, tmp_path):
    kept = f"--storage.path={tmp_path}/kept"
    first = start(kept)
    first.ready()
    (tmp_path / "second").mkdir()
    with Daemon(
        tmp_path / "second", "--simulate=vm", kept, environment={"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    ) as second:
        assert "another gpuhost-exporter runs" in second.log()
        second.ready()
        assert f"({first.process.pid})" in second.command("release").stdout
        first.wait_until(lambda seen: value(seen, "gpuhost_nvml_state", state="released") == 1, 5)
        assert value(second.series(), "gpuhost_nvml_state", state="ok") == 1
        assert {path.suffix for path in (tmp_path / "kept").iterdir()} <= {".json", ""}
    assert first.command("resume").returncode == 0, "the second one's end takes nothing from the first"
    first.wait_until(lambda seen: value(seen, "gpuhost_nvml_state", state="ok") == 1, 10)


# Streams.


def test_without_standard_streams_it_serves_and_ends(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Daemon(tmp_path, "--simulate=vm", through=shell("exec 0<&- 1>&- 2>&-"), port=port) as daemon:
        daemon.ready()
        assert value(daemon.series(), "gpuhost_nvml_state", state="ok") == 1
        for pid in (daemon.process.pid, *daemon.descendants()):
            streams = {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)}
            assert streams == {"/dev/null"}, "a library prints there; our sockets must not have taken the numbers"
        assert daemon.command("release").returncode == 0
        assert daemon.stop() == 0


@pytest.mark.parametrize("words", ["exec 2>/dev/full", "exec 2>&1 1>&-"], ids=["a full disk", "only stderr"])
def test_a_log_that_takes_nothing_stops_nothing(tmp_path, words):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Daemon(tmp_path, "--simulate=vm", "--log.level=debug", through=shell(words), port=port) as daemon:
        daemon.ready()
        assert daemon.command("resume").returncode == 0
        assert daemon.stop() == 0


def test_a_log_that_nobody_reads_blocks_neither_polls_nor_the_end(tmp_path):
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"." * 4096)
    os.set_blocking(write, True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "gpuhost_exporter", "serve", f"--web.listen-address=127.0.0.1:{port}"]
    with subprocess.Popen([*command, "--simulate=vm", "--log.level=debug"], stderr=write, env=environment) as process:
        try:
            answer = b""
            deadline = time.monotonic() + 20
            while b" 200 " not in answer and time.monotonic() < deadline:
                with (
                    contextlib.suppress(ConnectionRefusedError),
                    socket.create_connection(("127.0.0.1", port), 5) as client,
                ):
                    client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                    answer = client.recv(1024)
                time.sleep(0.1)
            assert b" 200 " in answer
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
            os.close(read)
            os.close(write)


# What it leaves behind.


@pytest.mark.parametrize(
    "options",
    [
        ("--simulate.control={folder}/wrong.json",),
        ("--web.listen-address=nowhere",),
        ("--config.file={folder}/none.toml",),
    ],
    ids=["wrong control file", "bad address", "no configuration"],
)
def test_a_start_that_fails_leaves_no_simulated_trees(tmp_path, options):
    (tmp_path / "wrong.json").write_text("{}")
    begin = mounted(Path("/dev/shm"), "size=64m")
    command = [sys.executable, "-m", "gpuhost_exporter", "serve", "--simulate=vm"]
    command += [option.format(folder=tmp_path) for option in options]
    look = ["sh", "-c", '"$@"; test $? = 2 && ls /dev/shm', "sh"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*begin, *look, *command], env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == ""


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("after", [0.0, 0.1, 0.25, 0.45])
def test_a_signal_while_it_starts_ends_it_and_leaves_nothing(tmp_path, number, after):
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    marker = f"127.0.0.1:0,{tmp_path.name}"
    command = [sys.executable, "-m", "gpuhost_exporter", "serve", "--web.listen-address=127.0.0.1:0"]
    command += ["--simulate=h100x8", f"--storage.path={tmp_path}/{marker}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as process:
        time.sleep(after)
        process.send_signal(number)
        said = process.communicate(timeout=15)[1]
    assert process.returncode in (0, 130, -number)
    # Python answers Ctrl-C before our first line so.
    assert "Traceback" not in said or said.endswith("\nKeyboardInterrupt\n"), said
    deadline = time.monotonic() + 3
    while left := running_with(marker):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def running_with(marker):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (folder / "cmdline").read_bytes():
                found.append(folder.name)
    return found


# Rights.


def test_an_ordinary_user_gets_the_rest_and_doctor_says_what_grants_what_is_missing():
    as_nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all")
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("becoming another user needs root and setpriv")
    if Path("/proc/sys/kernel/dmesg_restrict").read_text().strip() != "1":
        pytest.skip("this kernel lets everybody read its log")
    folder = Path(tempfile.mkdtemp())
    try:
        os.chown(folder, NOBODY, NOBODY)
        environment = {"HOME": str(folder), "PATH": os.environ["PATH"]}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [*as_nobody, sys.executable, "-m", "gpuhost_exporter"]
        if subprocess.run([*command, "--version"], env=environment, capture_output=True, check=False).returncode:
            pytest.skip("another user cannot read this installation")
        done = subprocess.run(
            [*command, "doctor"], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        lines = done.stdout.splitlines()
        at = next(number for number, line in enumerate(lines) if line.startswith("xid "))
        assert lines[at + 1].strip() == "kernel log: denied"
        assert lines[at + 2].strip() == "granted by: CAP_SYSLOG, where kernel.dmesg_restrict is 1"
        assert any(line.startswith("block ") and " on " in line for line in lines)
    finally:
        shutil.rmtree(folder)


# Time.


def test_neither_memory_nor_descriptors_grow_while_readers_end_and_scrapes_go_on(start, tmp_path):
    daemon = start(*arguments(tmp_path, "vm", "steady"))
    daemon.ready()
    end_the_reader(daemon)
    time.sleep(1.0)  # no scrape is under way
    before, memory = descriptors(daemon), resident(daemon)
    for _ in range(6):
        end_the_reader(daemon)
        for _ in range(25):
            daemon.get("/metrics")
            daemon.get("/")
    assert wait_for(lambda: descriptors(daemon) == before, 10), (before, descriptors(daemon))
    assert resident(daemon) - memory < 4 << 20
    assert value(daemon.series(), "gpuhost_nvml_reader_restarts_total", reason="crashed") >= 7


def end_the_reader(daemon):
    """Kill the process that reads NVML and wait until another answers."""
    (before,) = readers(daemon)
    os.kill(before, signal.SIGKILL)
    assert wait_for(lambda: readers(daemon) - {before}, 30), daemon.log()
    daemon.wait_until(lambda seen: value(seen, "gpuhost_nvml_state", state="ok") == 1)


def readers(daemon):
    return {pid for pid, name in daemon.descendants().items() if name.startswith("gpuhost-nvml")}


def descriptors(daemon):
    """How many each process of the exporter has open, by its name."""
    pids = {daemon.process.pid: "exporter", **descendants(daemon.process.pid)}
    return {name: len(os.listdir(f"/proc/{pid}/fd")) for pid, name in pids.items()}


def resident(daemon):
    with open(f"/proc/{daemon.process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
