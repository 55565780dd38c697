"""The Ansible role: what ansible-playbook and ansible-lint say, and that it knows every drop-in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
ROLE = DEPLOY / "ansible" / "roles" / "gpuhost_exporter"


@pytest.mark.parametrize(
    "command",
    [
        ("ansible-playbook", "--syntax-check", "--inventory=localhost,", "playbook.yml"),
        ("ansible-lint", "--offline", "--profile=production", "."),
    ],
    ids=["syntax", "lint"],
)
def test_ansible_takes_the_role(tmp_path, command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"the role is NOT checked: no {command[0]} here")
    environment = {**os.environ, "ANSIBLE_HOME": str(tmp_path)}
    run = {"cwd": DEPLOY / "ansible", "env": environment, "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run(command, check=False, **run)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_role_knows_every_drop_in_of_the_package():
    tasks = yaml.safe_load((ROLE / "tasks" / "main.yml").read_text())
    (unwanted,) = (task["loop"] for task in tasks if task["name"] == "Drop-ins that are not")
    assert all(f"'{path.stem}'" in unwanted for path in (DEPLOY / "systemd").glob("*.conf"))


def test_every_variable_of_the_role_has_a_default():
    text = "".join(path.read_text() for folder in ("tasks", "templates") for path in (ROLE / folder).iterdir())
    words = {word.strip("\"'(){}|,") for word in text.split()}
    used = {word for word in words if word.startswith("gpuhost_exporter_")}
    assert used
    assert used <= set(yaml.safe_load((ROLE / "defaults" / "main.yml").read_text()))
