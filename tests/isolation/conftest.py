"""Commands as processes, away from the user's own state."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


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
