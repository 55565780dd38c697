"""Commands beside the packaged service, by the packages' own script: they find its process, settings and state."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.sources.runtime import Runtime

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "deploy" / "packages" / "gpuhost-exporter.in"
INVENTORY = {"version": 1, "data": {"drives": {"devices": {"S1": {}}, "most": 1}}}


@pytest.fixture
def packaged(tmp_path):
    """Runs the script, its places below `tmp_path`, as root's shell would: with none of systemd's variables."""
    script = SCRIPT.read_text().replace("@INTERPRETER@", sys.executable)
    places = {
        "/usr/lib/gpuhost-exporter": REPOSITORY / "exporter",
        "/etc/gpuhost-exporter": tmp_path / "etc",
        "/var/lib/gpuhost-exporter": tmp_path / "state",
    }
    for place, stands_in in places.items():
        assert place in script
        script = script.replace(place, str(stands_in))
    (tmp_path / "script").write_text(script)
    for name in ("etc", "state", "home"):
        (tmp_path / name).mkdir()

    def run(*arguments, **environment):
        words = [sys.executable, *script.splitlines()[0].split()[1:], tmp_path / "script", *arguments]
        surroundings = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), **environment}
        return subprocess.run(words, env=surroundings, capture_output=True, text=True, check=False, timeout=60)

    return run


def learn(folder):
    folder.mkdir(exist_ok=True)
    (folder / "inventory.json").write_text(json.dumps(INVENTORY))
    return folder / "inventory.json"


def known(file):
    return set(json.loads(file.read_text())["data"]["drives"]["devices"])


def test_commands_go_by_the_services_settings_and_state(packaged, tmp_path):
    (tmp_path / "etc" / "config.toml").write_text('[log]\nlevel = "debug"\n')
    said = packaged("check-config").stdout
    assert f"storage path: {tmp_path}/state" in said
    assert "log level: debug" in said
    file = learn(tmp_path / "state")
    done = packaged("forget", "S1")
    assert (done.returncode, done.stdout) == (0, "forgot S1\n"), done.stderr
    assert known(file) == set()
    assert list((tmp_path / "home").iterdir()) == []


def test_a_state_folder_that_the_settings_name_is_the_one(packaged, tmp_path):
    (tmp_path / "etc" / "config.toml").write_text(f'[storage]\npath = "{tmp_path}/elsewhere"\n')
    there, not_there = learn(tmp_path / "elsewhere"), learn(tmp_path / "state")
    assert packaged("forget", "S1").returncode == 0
    assert (known(there), known(not_there)) == (set(), {"S1"})


def test_flags_go_before_the_services_places(packaged, tmp_path):
    (tmp_path / "etc" / "config.toml").write_text("[no-such-section]\n")
    (tmp_path / "own.toml").write_text("")
    file, other = learn(tmp_path / "own"), learn(tmp_path / "state")
    assert packaged("forget", "S1", f"--storage.path={tmp_path}/own").returncode == 0
    assert (known(file), known(other)) == (set(), {"S1"})
    assert packaged("check-config", f"--config.file={tmp_path}/own.toml").returncode == 0
    assert "no-such-section" in packaged("check-config").stderr


def test_neither_a_simulated_host_nor_another_exporter_takes_the_services_settings(packaged, tmp_path):
    (tmp_path / "etc" / "config.toml").write_text("[no-such-section]\n")
    done = packaged("snapshot", "--simulate=nogpu", "--timeout=1s")
    assert (done.returncode, "no-such-section" in done.stderr) == (0, False), done.stderr
    done = packaged("serve", "--path.procfs=/nowhere", "--web.listen-address=127.0.0.1:0")
    assert "/nowhere" in done.stderr
    assert "no-such-section" not in done.stderr


def test_settings_that_a_user_may_not_read_are_left_out_and_that_is_said(monkeypatch, capsys, tmp_path):
    from gpuhost_exporter import config

    file = tmp_path / "config.toml"
    file.write_text("")
    environment = {"GPUHOST_EXPORTER_CONFIG": str(file)}
    assert config.default_config_file(environment) == str(file)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(config.os, "access", lambda *_: False)
    assert config.default_config_file(environment) is None
    assert f"{file}: Permission denied" in capsys.readouterr().err


DAEMON = """
import fcntl, os, signal, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
file.write(f"{os.getpid()}\\n")
file.flush()
print("ready", flush=True)
sys.exit(signal.sigtimedwait({signal.SIGUSR1, signal.SIGUSR2}, 60).si_signo)
"""


def daemon(folder):
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-c", DAEMON, folder / "pid"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("left", [False, True], ids=["no folder of one's own", "one that a daemon left"])
def test_the_services_process_is_found_from_any_shell(tmp_path, left):
    own, service = tmp_path / "own", tmp_path / "service"
    if left:
        own.mkdir()
        (own / "pid").write_text("1\n")
    before = os.umask(0o077)
    try:
        with daemon(service) as process:
            assert Runtime.of_daemon(str(own), str(service)).signal_release(600) == process.pid
            assert process.wait(30) == 10, "SIGUSR1"
        assert (service / "release").stat().st_mode & 0o777 == 0o644, "the daemon is another user"
        assert not (own / "release").exists()
        with daemon(service) as process:
            assert Runtime.of_daemon(str(own), str(service)).signal_resume() == process.pid
            assert process.wait(30) == 12, "SIGUSR2"
    finally:
        os.umask(before)


def test_ones_own_process_goes_before_the_services(tmp_path):
    with daemon(tmp_path / "own") as own, daemon(tmp_path / "service") as service:
        assert Runtime.of_daemon(str(tmp_path / "own"), str(tmp_path / "service")).signal_resume() == own.pid
        assert own.wait(30) == 12
        assert service.poll() is None
        service.kill()


def test_where_none_runs_both_places_are_named(tmp_path):
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "pid").write_text(f"{os.getpid()}\n")
    with (tmp_path / "service" / "pid").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(file, fcntl.LOCK_UN)
        with pytest.raises(ConfigError, match=r"own/pid, .*service/pid: no running gpuhost-exporter found here"):
            Runtime.of_daemon(str(tmp_path / "own"), str(tmp_path / "service"))
