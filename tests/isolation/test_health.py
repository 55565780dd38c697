"""`health` as a process: fast, and never vouching for an exporter that it cannot believe."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from support.daemon import Daemon
from support.web import certificate

PROGRAM = (sys.executable, "-m", "gpuhost_exporter")


def health(environment, *arguments):
    begin = time.monotonic()
    done = subprocess.run(
        [*PROGRAM, "health", *arguments],
        capture_output=True, text=True, timeout=30, env=environment, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr, time.monotonic() - begin


def of(daemon, environment, *arguments):
    return health(environment, f"--url=http://127.0.0.1:{daemon.port}", *arguments)[:3]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """An exporter of this machine, which has no GPU."""
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has GPUs, of which nothing is known here")
    with Daemon(tmp_path_factory.mktemp("real")) as daemon:
        deadline = time.monotonic() + 40  # until NVML's collectors have heard that there is no library
        while daemon.get("/verdict")[0] != 200:
            assert time.monotonic() < deadline, daemon.get("/verdict")
            time.sleep(0.2)
        yield daemon


def test_the_exporters_verdict_is_the_exit_code(real, environment):
    assert of(real, environment) == (0, "fit: No GPU is expected on this host\n", "")
    assert real.get("/verdict") == (200, b"fit: No GPU is expected on this host\n")


@pytest.mark.alone
def test_it_answers_within_100_ms_with_the_start_of_python(real, environment):
    """In processor time, which a busy machine does not stretch, and in wall time at its best."""
    times, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(20):
        code, _, _, seconds = health(environment, f"--url=http://127.0.0.1:{real.port}")
        assert code == 0
        times.append(seconds)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 20
    print(f"wall {min(times) * 1e3:.0f} to {max(times) * 1e3:.0f} ms, processor {processor * 1e3:.0f} ms a call")
    assert processor < 0.08
    if os.getloadavg()[0] < (os.cpu_count() or 1):  # where others queue for the processors, wall time is theirs
        assert min(times) < 0.1


def test_a_hung_exporter_is_not_vouched_for_and_not_waited_for(tmp_path, environment):
    with Daemon(tmp_path) as daemon:
        daemon.ready()
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            code, said, _, seconds = health(environment, f"--url=http://127.0.0.1:{daemon.port}")
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        assert (code, said) == (2, "unknown: the exporter gave no answer within 1 s\n")
        assert seconds < 2
        assert of(daemon, environment)[0] == 0


def test_an_exporter_of_a_simulated_host_is_not_vouched_for(tmp_path, environment):
    with Daemon(tmp_path, "--simulate=h100x8") as daemon:
        daemon.ready()
        said = "unknown: the exporter serves a simulated host, h100x8\n"
        assert of(daemon, environment) == (2, said, "")
        assert daemon.get("/verdict") == (503, said.encode())


def test_an_absent_exporter_is_not_vouched_for(environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        code, said, _, _ = health(environment, f"--url=http://127.0.0.1:{probe.getsockname()[1]}")
    assert code == 2
    assert said.startswith("unknown: no exporter at 127.0.0.1:")
    assert said.endswith(": Connection refused\n")


def answered(environment, answer):
    """By a server that says this whatever it is asked."""

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return health(environment, f"--url=http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("status", "word", "code"), [(b"200 OK", "fit", 0), (b"503 Unfit", "unfit", 1), (b"503 Unfit", "unknown", 2)]
)
def test_each_word_of_the_exporter_has_its_exit_code_and_its_one_reason(environment, status, word, code):
    line = f"{word}: GPU 3: lost: it fell off the bus, and 1 more\n"
    found = answered(environment, b"HTTP/1.1 " + status + b"\r\nContent-Type: text/plain\r\n\r\n" + line.encode())
    assert found[:3] == (code, line, "")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is no exporter"),
        (b"", "is no exporter"),
        (b"HTTP/1.1 200 OK\r\n\r\nfit", "gave no verdict, but HTTP status 200"),
        (b"HTTP/1.1 200 OK\r\n\r\nunfit: GPU 3: lost", "gave no verdict"),
        (b"HTTP/1.1 503 Busy\r\n\r\nfit: all well", "gave no verdict"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n/metrics", "older than this command"),
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "asks for a user"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"fit\n" * 40000, "gave no verdict"),
    ],
)
def test_whatever_else_answers_is_not_believed(environment, answer, said):
    code, reason, errors, _ = answered(environment, answer)
    assert (code, errors) == (2, "")
    assert reason.startswith("unknown: ")
    assert said in reason


def test_an_exporter_that_drips_is_as_late_as_one_that_is_silent(environment):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                try:
                    for _ in range(100):
                        connection.sendall(b"H")
                        time.sleep(0.1)
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        code, said, _, seconds = health(environment, f"--url=http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert (code, said) == (2, "unknown: the exporter gave no answer within 1 s\n")
    assert seconds < 2


def test_tls_and_a_user_are_spoken_where_the_exporter_asks_for_them(tmp_path, environment):
    import bcrypt

    certificate(tmp_path, "server")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    (tmp_path / "web.yml").write_text(
        f"tls_server_config: {{cert_file: server.crt, key_file: server.key}}\nbasic_auth_users: {{slurm: '{hashed}'}}\n"
    )
    (tmp_path / "user").write_text("slurm:secret\n")
    with Daemon(tmp_path, f"--web.config.file={tmp_path}/web.yml") as daemon:
        url, trusted = f"--url=https://127.0.0.1:{daemon.port}", f"--ca-file={tmp_path}/server.crt"
        user = f"--user-file={tmp_path}/user"
        deadline = time.monotonic() + 20
        while (found := health(environment, url, trusted, user))[0] != 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert found[:2] == (0, "fit: No GPU is expected on this host\n")
        assert "asks for a user" in health(environment, url, trusted)[1]
        assert "CERTIFICATE_VERIFY_FAILED" in health(environment, url, user)[1]
        assert of(daemon, environment)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--url=127.0.0.1:19400",), "expected http[s]://HOST[:PORT]"),
        (("--url=http://host:99999",), "expected http[s]://HOST[:PORT]"),
        (("--timeout=soon",), "expected a duration"),
        (("--nope",), "--nope"),
        (("--user-file=/none",), "/none: No such file"),
        (("--url=https://127.0.0.1", "--ca-file=/none"), "/none: No such file"),
    ],
)
def test_wrong_usage_is_one_line(environment, arguments, said):
    code, output, errors, _ = health(environment, *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert said in errors


@pytest.mark.parametrize(
    ("word", "code"), [("fit: All 8 GPUs deliver", 0), ("unfit: GPU 3: lost", 1), ("unknown: no", 2)]
)
@pytest.mark.parametrize("reader", ["gone", "full"])
def test_the_exit_code_is_the_verdict_though_nobody_can_read_it(environment, tmp_path, word, code, reader):
    if reader == "gone":
        ours, output = os.pipe()
        os.close(ours)
    else:
        output = os.open("/dev/full", os.O_WRONLY)
    answer = f"HTTP/1.1 {200 if code == 0 else 503} x\r\n\r\n{word}\n".encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"--url=http://127.0.0.1:{listener.getsockname()[1]}"
        done = subprocess.run(
            [*PROGRAM, "health", url],
            stdout=output, stderr=subprocess.PIPE, timeout=30, env=environment, check=False,
        )  # fmt: skip
        thread.join()
    os.close(output)
    assert (done.returncode, done.stderr) == (code, b"")


DEFECTS = {
    "health": "from gpuhost_exporter import health; health.ask = None",
    "verify": "from gpuhost_exporter.verify import command; command.App = None",
}


@pytest.mark.parametrize("command", DEFECTS)
def test_a_defect_of_ours_is_no_verdict(environment, command):
    """Python's own exit code for it is 1, on which schedulers drain."""
    script = f"import sys\n{DEFECTS[command]}\nfrom gpuhost_exporter.__main__ import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, command],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    if command == "health":
        assert done.stdout.startswith("unknown: a defect of this command: TypeError: ")
        assert done.stderr == ""
    else:
        assert (done.stdout, done.stderr.splitlines()[-1]) == ("", "TypeError: 'NoneType' object is not callable")


def test_an_installation_that_is_broken_is_no_verdict(environment, tmp_path):
    script = "import sys; sys.modules['socket'] = None; from gpuhost_exporter.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "health"],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.startswith("unknown: a defect of this command: ModuleNotFoundError: import of socket")


def test_a_node_condition_is_a_dry_run_until_it_is_ended(real, environment):
    process = subprocess.Popen(
        [*PROGRAM, "node-condition", "--interval=0.1s", "--fit-after=3", f"--url=http://127.0.0.1:{real.port}"],
        env={**environment, "NODE_NAME": "node-7"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
    finally:
        process.terminate()
    rest = process.communicate(timeout=10)[1]
    assert "dry run: GPUHostUnfit of node-7 would be False: No GPU is expected on this host" in line
    assert (rest, process.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--node NAME or $NODE_NAME"),
        (("--node=a", "--apply"), "not in a pod"),
        (("--node=a", "--most-unfit=1.5"), "expected a share above 0 and up to 1"),
        (("--node=a", "--unfit-after=0"), "expected a count from 1 to 1000"),
    ],
)
def test_a_node_condition_that_cannot_begin_says_why_in_one_line(run, environment, arguments, said):
    for name in ("NODE_NAME", "KUBERNETES_SERVICE_HOST"):
        environment.pop(name, None)
    done = run("node-condition", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr
