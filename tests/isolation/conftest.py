"""Commands as processes, away from the user's own state."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sources.launcher import Launcher, ReaderKind
from gpuhost_exporter.sources.nvml.client import NvmlClient


@pytest.fixture
def environment(tmp_path):
    return {
        **os.environ,
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }


@pytest.fixture
def run(tmp_path, environment):
    """`gpuhost-exporter ARGUMENTS` to its end; files are named relative to tmp_path."""

    def call(*arguments, **named):
        named = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **named}
        command = [sys.executable, "-m", "gpuhost_exporter", *arguments]
        return subprocess.run(command, text=True, timeout=20, env=environment, cwd=tmp_path, check=False, **named)

    return call


class Clock(SystemClock):
    """Real time plus what the test lets pass."""

    ahead = 0.0

    def now(self):
        return super().now() + self.ahead


@pytest.fixture
def make_nvml(tmp_path):
    """Clients of a reader that does what is scripted (support.mains.nvml), with their clock and the script's file."""
    launcher = Launcher.start({"nvml": ReaderKind("support.mains:nvml", frozenset())})
    steps = tmp_path / "steps"
    made = []

    def client(script="", gpus=3):
        steps.write_text(script)
        clock = Clock()
        arguments = {"steps": str(steps), "gpus": gpus}
        made.append(NvmlClient(launcher, clock, arguments, timeout=0.3, pause=60.0))
        return made[-1], clock, steps

    yield client
    for one in made:
        one.release(1)
    launcher.close()
