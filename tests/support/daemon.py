"""The real exporter as a process, asked over real HTTP."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


class Daemon:
    """`gpuhost-exporter serve ARGUMENTS` on a free port, its state below `folder`.

    `through`: a command that starts it, such as setpriv. `port`: a free one, for a daemon whose log is not told.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        through: Sequence[str] = (),
        port: int = 0,
    ) -> None:
        self.folder = folder
        self.log_path = folder / "log"
        self._log = self.log_path.open("wb")
        environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "XDG_STATE_HOME": str(folder / "state"),
            "TMPDIR": str(folder),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            **(environment or {}),
        }
        self.environment = environment
        listen = f"--web.listen-address=127.0.0.1:{port}"
        command = [*through, sys.executable, "-m", "gpuhost_exporter", "serve", listen, *arguments]
        self.process = subprocess.Popen(command, stderr=self._log, stdout=self._log, env=environment)
        self.port = self._wait_for_port(port)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        self._log.close()
        return self.process.returncode

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _wait_for_port(self, port: int) -> int:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = _LISTENING.search(self.log())
            if found:
                return int(found.group(1))
            with contextlib.suppress(ConnectionRefusedError):
                if port:
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    return port
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.process.kill()
        self.process.wait()
        self._log.close()
        raise AssertionError(f"the exporter did not start:\n{self.log()}")

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def text(self) -> str:
        status, body = self.get("/metrics")
        assert status == 200
        return body.decode()

    def series(self) -> Series:
        return parse(self.text())

    def wait_until(self, holds, seconds: float = 30.0):
        """The first scrape for which holds(series) is true; fails with the log when none is in time."""
        deadline = time.monotonic() + seconds
        while True:
            series = self.series()
            if holds(series):
                return series
            if time.monotonic() > deadline:
                raise AssertionError(f"not seen within {seconds} s; log:\n{self.log()}")
            time.sleep(0.1)

    def ready(self) -> None:
        deadline = time.monotonic() + 30
        while self.get("/readyz")[0] != 200:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another `gpuhost-exporter` command in the daemon's environment."""
        return subprocess.run(
            [sys.executable, "-m", "gpuhost_exporter", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            env=self.environment,
            check=False,
        )

    def descendants(self) -> dict[int, str]:
        """pid -> name of every process below the exporter."""
        return descendants(self.process.pid)


def descendants(pid: int) -> dict[int, str]:
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # threads come and go meanwhile
            for task in Path(f"/proc/{todo.pop()}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    for child in (task / "children").read_text().split():
                        found[int(child)] = Path(f"/proc/{child}/comm").read_text().strip()
                        todo.append(int(child))
    return found


def parse(text: str) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def select(series: Series, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Series of this name that have these labels."""
    wanted = set(labels.items())
    return {key: value for (series_name, key), value in series.items() if series_name == name and wanted <= set(key)}


def value(series: Series, name: str, **labels: str) -> float | None:
    """The one series' value, None when it is absent."""
    found = select(series, name, **labels)
    assert len(found) <= 1, f"{name}{labels} names {len(found)} series"
    return next(iter(found.values()), None)
