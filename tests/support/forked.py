"""Commands without the start of an interpreter: a process that has imported the exporter forks for each of them.

with Forked(environment) as run:
    done = run("verify", "--json", folder=tmp_path)         as subprocess.run() gives it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


class Forked:
    def __init__(self, environment: dict[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "support.forked"],
            env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait(10)
        self._server.stdout.close()

    def __call__(self, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Its state, its runtime directory and what it leaves are below the folder."""
        print(json.dumps([str(folder), arguments]), file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        told = [(folder / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, status, *told)


def _command(folder: str, arguments: list[str]) -> None:
    """In a process of its own."""
    from gpuhost_exporter import cli

    os.environ |= {"XDG_RUNTIME_DIR": f"{folder}/run", "XDG_STATE_HOME": f"{folder}/state", "TMPDIR": folder}
    os.chdir(folder)
    for descriptor, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    status = 70  # what nobody foresaw
    try:
        status = cli.main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve() -> None:
    import gpuhost_exporter.verify.command  # noqa: F401 -- what takes the time

    for line in sys.stdin:
        folder, arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _command(folder, arguments)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
