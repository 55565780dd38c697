"""The folder of a simulation's files: one of a simulation that was killed goes with the next that starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpuhost_exporter.sim import folder

HOLD = """
import sys, time
from gpuhost_exporter.sim import folder
folder._SHARED = sys.argv[1]
print(folder.create(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_SHARED", str(tmp_path))
    return str(tmp_path)


def test_what_a_killed_simulation_left_goes_and_what_one_uses_stays(shared):
    other = subprocess.Popen([sys.executable, "-c", HOLD, shared], stdout=subprocess.PIPE, text=True)
    try:
        theirs = other.stdout.readline().strip()
        os.mkdir(f"{theirs}/root")
        mine = folder.create()
        assert {f"{shared}/{name}" for name in os.listdir(shared)} == {theirs, mine}
    finally:
        other.kill()
        other.communicate()
    assert os.path.isdir(f"{theirs}/root")
    last = folder.create()
    assert {f"{shared}/{name}" for name in os.listdir(shared)} == {mine, last}


def test_it_is_its_owners_alone_and_can_be_removed(shared):
    path = folder.create()
    assert os.stat(path).st_mode & 0o777 == 0o700
    folder.remove(path)
    assert os.listdir(shared) == []


def test_what_is_nobodys_simulation_stays(shared):
    os.mkdir(f"{shared}/gpuhost-demo-1")
    with open(f"{shared}/gpuhost-simulation-file", "w", encoding="utf-8"):
        pass
    path = folder.create()
    assert set(os.listdir(shared)) == {"gpuhost-demo-1", "gpuhost-simulation-file", os.path.basename(path)}
