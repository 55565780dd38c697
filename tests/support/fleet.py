"""A fleet on one machine: recorded hosts served by one process, a Prometheus in agent mode, and VictoriaMetrics.

with Fleet(folder, hosts=200, seconds=15) as fleet:
    fleet.store.stop()                          an outage
    fleet.store.start()
    fleet.ask('count(gpuhost_gpu_up)')            PromQL, of the store
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
RECORDED = REPOSITORY / "tests" / "golden" / "h100x8.prom"
AGENT = REPOSITORY / "deploy" / "fleet" / "prometheus-agent.yml"
PROGRAMS = ("prometheus", "victoria-metrics")
SERIAL = "gpuhost_exporter_scrapes_total"
_TOTAL = re.compile(rb"(?m)^(\w+_total(?:\{.*\})?) (\S+)$")


def missing() -> str | None:
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not found: {', '.join(lacking)}; apt-get install prometheus victoria-metrics" if lacking else None


class Replay(ThreadingHTTPServer):
    """Recorded hosts at /hosts/NAME/metrics, listed at /targets as HTTP service discovery wants it.

    Counters rise by a thousandth a scrape; SERIAL is the number of the scrape, so that a hole shows.
    """

    daemon_threads = True

    def __init__(self, hosts: int, recorded: Path = RECORDED) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        text = re.sub(rb"(?m) \*$", b" 1", recorded.read_bytes())  # what passes is masked there
        self.names = [f"gpu-{number:04}" for number in range(hosts)]
        self.served: Counter[str] = Counter()
        self._parts = _TOTAL.split(text)
        self.samples = sum(not line.startswith(b"#") for line in text.splitlines() if line) + 1
        self.bytes = len(text)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def targets(self) -> bytes:
        return json.dumps(
            [
                {"targets": [self.address], "labels": {"__metrics_path__": f"/hosts/{name}/metrics", "instance": name}}
                for name in self.names
            ]
        ).encode()

    def metrics(self, name: str) -> bytes:
        self.served[name] += 1
        serial = self.served[name]
        pieces = [self._parts[0]]
        for place in range(1, len(self._parts), 3):
            series, value, rest = self._parts[place : place + 3]
            pieces.append(b"%s %r%s" % (series, float(value) * (1 + serial / 1000), rest))
        return b"".join(pieces) + f'\n{SERIAL}{{format="replay"}} {serial}\n'.encode()


class _Answer(BaseHTTPRequestHandler):
    server: Replay
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/targets":
            kind, body = "application/json", self.server.targets()
        else:
            kind, body = "text/plain; version=0.0.4", self.server.metrics(self.path.split("/")[2])
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Program:
    """A program that can be stopped and started again on the same port and data."""

    def __init__(self, log: Path, command: list[str], port: int, ready: str) -> None:
        self._log, self._command, self.port, self._ready = log, command, port, ready
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self._ready}", timeout=5).close()
            except OSError:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise AssertionError(self._log.read_text()[-3000:]) from None
                time.sleep(0.2)
            else:
                return

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log(self) -> str:
        return self._log.read_text()

    def memory(self) -> int:
        """Resident bytes."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    def cpu_seconds(self) -> float:
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


class Fleet:
    """`rules`: a pattern of files; Prometheus then is no agent, but evaluates them on what it scrapes."""

    def __init__(self, folder: Path, hosts: int, seconds: int, rules: str = "") -> None:
        self.replay = Replay(hosts)
        self.folder = folder
        store_port, agent_port = free_port(), free_port()
        self.data = folder / "store"
        self.store = Program(
            folder / "store.log",
            ["victoria-metrics", f"-storageDataPath={self.data}", f"-httpListenAddr=127.0.0.1:{store_port}"],
            store_port,
            "/health",
        )
        configuration = yaml.safe_load(AGENT.read_text())
        configuration["global"]["scrape_interval"] = f"{seconds}s"
        (job,) = configuration["scrape_configs"]
        del job["file_sd_configs"]
        job["http_sd_configs"] = [{"url": f"http://{self.replay.address}/targets", "refresh_interval": "5s"}]
        (write,) = configuration["remote_write"]
        write["url"] = f"http://127.0.0.1:{store_port}{urllib.parse.urlsplit(write['url']).path}"
        mode = ["--enable-feature=agent", f"--storage.agent.path={folder / 'agent'}"]
        if rules:
            configuration["rule_files"] = [rules]
            configuration["global"]["evaluation_interval"] = f"{seconds}s"
            del configuration["global"]["external_labels"]
            mode = [f"--storage.tsdb.path={folder / 'agent'}"]
        (folder / "agent.yml").write_text(yaml.safe_dump(configuration))
        self.agent = Program(
            folder / "agent.log",
            [
                *("prometheus", *mode, f"--config.file={folder / 'agent.yml'}"),
                f"--web.listen-address=127.0.0.1:{agent_port}",
            ],
            agent_port,
            "/-/ready",
        )

    def __enter__(self):
        try:
            self.store.start()
            self.agent.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.stop()
        self.store.stop()
        self.replay.shutdown()
        self.replay.server_close()

    def ask(self, query: str) -> list[dict]:
        """What the store answers now; it shows what it was sent within the last second or two only when flushed."""
        text = urllib.parse.urlencode({"query": query, "nocache": "1"})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.store.port}/api/v1/query?{text}", timeout=150) as answer:
            return json.load(answer)["data"]["result"]

    def series(self) -> int:
        """How many the store has, of all names."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.store.port}/api/v1/series/count", timeout=150) as answer:
            return int(json.load(answer)["data"][0])

    def stored(self, selector: str) -> dict[str, list[float]]:
        """Every raw value by instance."""
        text = urllib.parse.urlencode({"match[]": selector})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.store.port}/api/v1/export?{text}", timeout=150) as answer:
            lines = [json.loads(line) for line in answer]
        return {line["metric"]["instance"]: line["values"] for line in lines}

    def agent_says(self, name: str) -> float:
        """The sum of one of the agent's own metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.agent.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def wait_for(self, holds, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, (self.folder / "agent.log").read_text()[-3000:]
            time.sleep(1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
