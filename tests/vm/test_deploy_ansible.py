"""The Ansible role on a machine of its own, over ssh: installed with TLS and a password, twice, and then otherwise."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import shutil
import ssl
import subprocess

import bcrypt
import pytest
import yaml
from support.web import certificate
from vm import image
from vm.machine import UNIT

PLAYBOOK = image.REPOSITORY / "deploy" / "ansible" / "playbook.yml"
DROP_INS = f"/etc/systemd/system/{UNIT}.service.d"
PASSWORD = "a-password"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    for program in ("ansible-playbook", "ssh-keygen", "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"the role is NOT tried: no {program}; apt-get install ansible-core openssh-client openssl")
    folder = tmp_path_factory.mktemp("ansible")
    certificate(folder, "server")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "id"], check=True)
    return folder


@pytest.fixture(scope="module")
def package():
    return str(image.package())


@pytest.fixture(scope="module")
def host(machine, keys):
    """Reachable over ssh, and nothing of ours on it."""
    machine.run(f"systemctl stop {UNIT}; rm -rf /var/lib/{UNIT}; mkdir -m 700 -p /root/.ssh")
    machine.put("/root/.ssh/authorized_keys", (keys / "id.pub").read_bytes())
    machine.run("chmod 600 /root/.ssh/authorized_keys; chown -R root: /root/.ssh; systemctl start ssh", 120)
    yield machine
    machine.run("systemctl stop ssh; rm -r /root/.ssh")
    machine.run(f"dpkg --purge {UNIT}; rm -rf {DROP_INS} /etc/{UNIT}", 120)
    machine.serve()


def play(host, keys, **variables):
    """The tasks that changed something."""
    settings = keys / "variables.yml"
    settings.write_text(yaml.safe_dump(variables))
    command = [
        *("ansible-playbook", "--inventory=127.0.0.1,", "--user=root", f"--private-key={keys / 'id'}"),
        *(f"--extra-vars=ansible_port={host.ssh_port}", f"--extra-vars=@{settings}", str(PLAYBOOK)),
    ]
    options = {
        "ANSIBLE_HOME": str(keys),
        "ANSIBLE_HOST_KEY_CHECKING": "False",
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_TIMEOUT": "120",
        "ANSIBLE_SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=60s -o UserKnownHostsFile={keys / 'known'}",
    }
    run = {"capture_output": True, "text": True, "timeout": 800, "env": {**os.environ, **options}}
    done = subprocess.run(command, check=False, **run)
    assert done.returncode == 0, done.stdout + done.stderr
    changed: dict[str, None] = {}
    for line in done.stdout.splitlines():
        if title := re.match(r"(?:TASK|RUNNING HANDLER) \[(?:\w+ : )?(.*)\] \*", line):
            task = title[1]
        elif line.startswith("changed: "):
            changed[task] = None
    return list(changed)


def answer(host, keys, user=None):
    context = ssl.create_default_context(cafile=str(keys / "server.crt"))
    word = base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", host.port, timeout=60, context=context)) as client:
        client.request("GET", "/metrics", headers={"Authorization": f"Basic {word}"} if user else {})
        with client.getresponse() as response:
            return response.status, response.read()


def test_it_installs_configures_with_tls_changes_nothing_twice_and_takes_back_what_is_not_wanted(host, keys, package):
    wanted = {
        "gpuhost_exporter_package": package,
        "gpuhost_exporter_certificate": str(keys / "server.crt"),
        "gpuhost_exporter_key": str(keys / "server.key"),
        "gpuhost_exporter_users": {"prometheus": bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()},
        "gpuhost_exporter_config": "[price]\ngpu-hour = 2.5\n",
    }
    assert play(host, keys, **wanted, gpuhost_exporter_drop_ins=["smart"])
    assert host.run(f"systemctl is-active {UNIT}; systemctl is-enabled {UNIT}").split() == ["active", "enabled"]
    assert answer(host, keys)[0] == 401
    status, page = answer(host, keys, "prometheus")
    assert status == 200
    assert b"gpuhost_exporter_build_info" in page
    assert host.run(f"stat --format='%U %G %a' /etc/{UNIT}/server.key").split() == ["root", UNIT, "640"]
    assert host.run(f"ls {DROP_INS}").split() == ["smart.conf"]
    assert play(host, keys, **wanted, gpuhost_exporter_drop_ins=["smart"]) == []
    assert play(host, keys, **wanted) == ["Drop-ins that are not", "Restart gpuhost-exporter"]
    assert host.run(f"ls {DROP_INS}").split() == []
    assert answer(host, keys, "prometheus")[0] == 200
