"""The command line as a process: exit codes, and one line on stderr for any mistake, never a traceback."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess

import bcrypt
import pytest
from support.web import certificate

from gpuhost_exporter import __version__, catalogue
from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sim import control

MORE = ("verify", "health", "node-condition", "drains", "report")
COMMANDS = ("serve", "snapshot", "doctor", "check-config", "metrics", "release", "resume", "simulate", "forget", *MORE)
HOSTS = "h100x8, l40s, vm, mig, oldkernel, nogpu"
LOCAL = "--web.listen-address=127.0.0.1:0"


def refused(done, *said):
    """Exit code 2, nothing on stdout, one line on stderr that has all of this."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("gpuhost-exporter: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for words in said:
        assert words in done.stderr


# Usage.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param((), ("COMMAND", "--help"), id="no command"),
        pytest.param(("srve",), ("'srve'", "choose from 'serve'"), id="unknown command"),
        pytest.param(("serve", "--nope"), ("--nope",), id="unknown flag"),
        pytest.param(("serve", "--web.listen", ":0"), ("--web.listen",), id="abbreviated flag"),
        pytest.param(("serve", "--no-collector.nvlnik"), ("--no-collector.nvlnik",), id="unknown collector"),
        pytest.param(("serve", "--config.file"), ("--config.file", "expected one argument"), id="no value"),
        pytest.param(("serve", "--config.file="), ("--config.file", "expected a text"), id="empty file name"),
        pytest.param(("serve", "--simulate="), ("--simulate", "expected a text"), id="empty host to simulate"),
        pytest.param(("serve", "--storage.path="), ("--storage.path", "expected a text"), id="empty folder"),
        pytest.param(("serve", "--log.level=loud"), ("--log.level", "'loud'", "'debug', 'info'"), id="log level"),
        pytest.param(("serve", "--simulate=h200"), ("simulated host 'h200'", HOSTS), id="simulated host"),
        pytest.param(("serve", "--simulate=vm:x"), ("scenario 'x'", "gpu-lost, gpu-reset, idle"), id="scenario"),
        pytest.param(("check-config", "--simulate=h200"), ("simulated host 'h200'", HOSTS), id="checked host"),
        pytest.param(("serve", "--path.procfs=none"), ("path.procfs: none", "proc file system"), id="no procfs"),
        pytest.param(("serve", "--path.sysfs=/dev/null"), ("path.sysfs: /dev/null", "sys file"), id="sysfs a file"),
        pytest.param(("snapshot", "--timeout=soon"), ("'soon'", "90s, 10m or 1h"), id="snapshot timeout"),
        pytest.param(("release", "--for=25h"), ("'25h'", "at most 24h"), id="release too long"),
        pytest.param(("simulate", "idle"), ("--control",), id="no control file named"),
        pytest.param(("forget",), ("device",), id="no device named"),
    ],
)
def test_wrong_usage_is_one_line(run, arguments, said):
    refused(run(*arguments), *said)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere", "expected HOST:PORT"),
        ("127.0.0.1:99999", "expected HOST:PORT"),
        ("", "expected HOST:PORT"),
        ("192.0.2.1:19400", "Cannot assign requested address"),
        ("no.such.host.invalid:19400", "cannot listen on no.such.host.invalid:19400: "),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_named(run, address, said):
    refused(run("serve", "--simulate=nogpu", f"--web.listen-address={address}"), said, address)


def test_a_port_in_use_is_named_and_its_owner_keeps_it(run):
    with socket.create_server(("127.0.0.1", 0)) as owner:
        address = f"127.0.0.1:{owner.getsockname()[1]}"
        refused(run("serve", "--simulate=nogpu", f"--web.listen-address={address}"), address, "Address already in use")
        socket.create_connection(owner.getsockname(), timeout=5).close()


def test_one_bad_address_of_two_leaves_none_open(run):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = f"127.0.0.1:{probe.getsockname()[1]}"
    refused(run("serve", "--simulate=nogpu", f"--web.listen-address={free}", "--web.listen-address=nowhere"), "nowhere")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(free.rpartition(":")[2])), timeout=5)


# Configuration files.


@pytest.mark.parametrize("command", [("serve", LOCAL), ("check-config",)], ids=["serve", "check-config"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"[web]\nlistn = 1\n", ("web.listn", "listen-address, config-file"), id="unknown key"),
        pytest.param(b"[log]\nlevel = 'loud'\n", ("log.level", "debug, info"), id="bad value"),
        pytest.param(b"[target]\nx = 1e400\n[web\n", ("not TOML", "line 3"), id="no TOML"),
        pytest.param(b"\x7fELF\x02\x01\x00\xff\xfe", ("not TOML",), id="binary"),
        pytest.param(b"a = " + b"[" * 20000, ("not TOML",), id="bottomless"),
        pytest.param(b"a = " + b"9" * 5000, ("not TOML",), id="a number of 5000 digits"),
        pytest.param(b'["two\\nlines"]\n', ("unknown key two lines",), id="a key of two lines"),
        pytest.param(b'[storage]\npath = "a\\u0000b"\n', ("storage.path", "expected a text"), id="a path with NUL"),
        pytest.param(b"[target]\nno_such_target = 1\n", ("no_such_target",), id="unknown target"),
        pytest.param(b"[path]\nsysfs = '/none'\n", ("path.sysfs: /none",), id="no such folder"),
        pytest.param(b"[web]\nconfig-file = 'none.yml'\n", ("none.yml: No such file",), id="no web configuration"),
    ],
)
def test_a_mistake_in_the_configuration_file_is_one_line(run, tmp_path, command, content, said):
    (tmp_path / "exporter.toml").write_bytes(content)
    refused(run(*command, "--config.file=exporter.toml"), *said)


@pytest.mark.parametrize(
    ("name", "said"), [("none.toml", "none.toml: No such file"), (".", ".: Is a directory")], ids=["absent", "folder"]
)
def test_a_configuration_file_that_cannot_be_read_is_named(run, name, said):
    refused(run("serve", LOCAL, f"--config.file={name}"), said)


@pytest.mark.parametrize("command", [("serve", LOCAL), ("check-config",)], ids=["serve", "check-config"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("tls_servr_config: {}\n", ("tls_servr_config", "not supported"), id="unknown key"),
        pytest.param("basic_auth_users: {ann: secret}\n", ("basic_auth_users.ann", "bcrypt"), id="bad bcrypt"),
        pytest.param(
            "tls_server_config: {cert_file: none.crt, key_file: server.key}\n",
            ("tls_server_config.cert_file", "none.crt: No such file"),
            id="absent certificate",
        ),
        pytest.param(
            "tls_server_config: {cert_file: server.key, key_file: server.key}\n",
            ("tls_server_config.cert_file", "no PEM certificate"),
            id="no certificate",
        ),
        pytest.param("a: [\n", ("not YAML",), id="no YAML"),
    ],
)
def test_a_mistake_in_the_web_configuration_is_one_line(run, tmp_path, command, content, said):
    certificate(tmp_path, "server")
    (tmp_path / "web.yml").write_text(content)
    refused(run(*command, "--web.config.file=web.yml"), "web.yml", *said)


def test_check_config_prints_what_is_in_force_flags_over_file(run, tmp_path):
    certificate(tmp_path, "server")
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
    (tmp_path / "web.yml").write_text(
        f"tls_server_config: {{cert_file: server.crt, key_file: server.key}}\nbasic_auth_users: {{ann: {hashed}}}\n"
    )
    (tmp_path / "exporter.toml").write_text(
        '[web]\nlisten-address = ["127.0.0.1:1", "[::1]:2"]\nconfig-file = "web.yml"\n[log]\nlevel = "debug"\n'
        "[storage]\npath = '/var/lib/a'\n[nvml]\ncall-timeout = 2.5\n[collector.rdma]\nenabled = false\n"
    )
    done = run("check-config", "--config.file=exporter.toml", "--storage.path=/var/lib/b", "--no-collector.mig")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "listen addresses: 127.0.0.1:1, [::1]:2",
        f"web configuration file: {tmp_path}/web.yml",
        "procfs: /proc",
        "sysfs: /sys",
        "storage path: /var/lib/b",
        "log level: debug",
        "NVML call timeout: 2.5 s",
        "hosts whose latency is probed: none",
        "collectors off: rdma, mig",
    ]


def test_check_config_touches_nothing(run, tmp_path):
    before = set(tmp_path.rglob("*"))
    assert run("check-config", "--simulate=h100x8:tour", "--storage.path=kept").returncode == 0
    assert set(tmp_path.rglob("*")) == before


# Simulations.


def broken(**changes):
    whole = {
        "host": "vm",
        "segments": [{"scenario": "steady", "started_at": 1.0}],
        "frozen": None,
        "boot_id": "1",
        "started_wall": 1.0,
    }
    return json.dumps({**whole, **changes}).encode()


CONTROLS = [
    pytest.param(None, "No such file", id="absent"),
    pytest.param(b"", "not JSON", id="empty"),
    pytest.param(b"\x00\xff\xfe", "not JSON", id="binary"),
    pytest.param(b"[]", "expected an object", id="a list"),
    pytest.param(broken(host="h200"), "unknown simulated host 'h200'", id="unknown host"),
    pytest.param(broken(segments=[]), "at least one", id="no segment"),
    pytest.param(broken(frozen="now"), "expected a number, got 'now'", id="bad time"),
]


@pytest.mark.parametrize(("content", "said"), CONTROLS)
def test_switching_a_wrong_control_file_is_refused_and_leaves_it_alone(run, tmp_path, content, said):
    file = tmp_path / "control.json"
    if content is not None:
        file.write_bytes(content)
    refused(run("simulate", "idle", "--control=control.json"), "control.json", said)
    assert (file.read_bytes() if file.exists() else None) == content
    assert {path.name for path in tmp_path.iterdir()} <= {"control.json"}


@pytest.mark.parametrize(("content", "said"), CONTROLS[1:])
def test_serving_a_wrong_control_file_is_refused(run, tmp_path, content, said):
    (tmp_path / "control.json").write_bytes(content)
    refused(run("serve", LOCAL, "--simulate=vm", "--simulate.control=control.json"), "control.json", said)


def test_an_unknown_scenario_changes_no_simulation(run, tmp_path):
    file = tmp_path / "control.json"
    control.create(str(file), "vm", "steady", SystemClock())
    before = file.read_bytes()
    refused(run("simulate", "nope", "--control=control.json"), "unknown scenario 'nope'", "steady")
    assert file.read_bytes() == before


# release, resume, forget.


@pytest.fixture
def pid_file(tmp_path):
    folder = tmp_path / "run" / "gpuhost-exporter"
    folder.mkdir(parents=True)
    return folder / "pid"


@pytest.mark.parametrize("command", ["release", "resume"])
def test_without_a_daemon_nothing_is_asked(run, tmp_path, command):
    refused(run(command), str(tmp_path / "run"), "no running gpuhost-exporter found here")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["release", "resume"])
@pytest.mark.parametrize("content", ["", "0", "-1", "99999999999999999999", "soon", "\x00\xff"])
def test_a_pid_file_that_nobody_holds_is_no_daemon(run, pid_file, command, content):
    pid_file.write_text(content, encoding="latin-1")
    refused(run(command), str(pid_file), "no running gpuhost-exporter found here")


@pytest.mark.parametrize("command", ["release", "resume"])
def test_a_process_that_is_not_ours_gets_no_signal(run, pid_file, command):
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            pid_file.write_text(f"{other.pid}\n")  # left by a daemon that was killed; the number was given away again
            refused(run(command), "no running gpuhost-exporter found here")
            assert other.poll() is None
            assert not (pid_file.parent / "release").exists()
        finally:
            other.kill()


def test_a_held_pid_file_without_a_number_gets_no_signal(run, pid_file):
    with pid_file.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(run("resume"), str(pid_file), "expected the daemon's process id")


def test_forgetting_an_unknown_device_names_it_and_changes_nothing(run, tmp_path):
    (tmp_path / "kept").mkdir()
    file = tmp_path / "kept" / "inventory.json"
    file.write_text('{"version": 1, "data": {"drives": {"devices": {"S1": {}}, "most": 1}}}')
    before = file.read_bytes()
    refused(run("forget", "S2", "--storage.path=kept"), "kept", "'S2'")
    assert file.read_bytes() == before
    done = run("forget", "S1", "--storage.path=kept")
    assert (done.returncode, done.stdout, done.stderr) == (0, "forgot S1\n", "")
    refused(run("forget", "S1", "--storage.path=kept"), "'S1'")


def test_forgetting_where_nothing_was_learned_creates_nothing(run, tmp_path):
    refused(run("forget", "S1", "--storage.path=kept"), "kept", "'S1'")
    assert not (tmp_path / "kept").exists()


# Output.


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command):
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: gpuhost-exporter {command} ")


def test_help_and_version_name_every_command_and_the_version(run):
    listed = run("--help").stdout
    assert all(f"\n    {command}" in listed for command in COMMANDS)
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gpuhost-exporter {__version__}\n", "")


def test_the_catalogue_comes_as_markdown_json_and_a_table(run):
    assert run("metrics").stdout == catalogue.metrics_page()
    assert run("metrics", "--collectors").stdout == catalogue.collectors_table()
    rows = json.loads(run("metrics", "--json").stdout)
    assert [row["name"] for row in rows] == list(catalogue.specs())
    assert {
        "name": "gpuhost_nvlink_bytes_total",
        "type": "counter",
        "unit": "bytes",
        "labels": ["gpu", "uuid", "link", "direction"],
        "help": catalogue.specs()["gpuhost_nvlink_bytes_total"].help,
    } in rows


@pytest.mark.parametrize("arguments", [("metrics",), ("metrics", "--json"), ("serve", "--help")])
def test_a_reader_that_leaves_early_is_no_failure(run, arguments):
    read, write = os.pipe()
    os.close(read)
    try:
        done = run(*arguments, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_behind_stdout_is_one_line_and_a_failure(run):
    with open("/dev/full", "w") as full:
        done = run("metrics", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "gpuhost-exporter: [Errno 28] No space left on device\n"


def test_a_name_that_no_terminal_can_show_is_printed_escaped(run):
    done = run("check-config", "--storage.path=/a/\udcff")
    assert (done.returncode, done.stderr) == (0, "")
    assert "storage path: /a/\\udcff\n" in done.stdout


def closed(*numbers):
    def close():
        for number in numbers:
            with contextlib.suppress(OSError):
                os.close(number)

    return close


@pytest.mark.parametrize(("arguments", "status"), [(("metrics",), 0), (("serve", "--nope"), 2), (("resume",), 2)])
def test_closed_standard_streams_change_no_exit_code(run, arguments, status):
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert run(*arguments, **silent, preexec_fn=closed(0, 1, 2)).returncode == status
