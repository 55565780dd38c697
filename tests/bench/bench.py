"""What the exporter costs on a simulated h100x8 host, beside its peers, in one run.

    python tests/bench/bench.py [FLAG-OF-SERVE ...]      BENCH_SECONDS=30 in the environment

Every exporter is asked in turn, a request each, so that the machine's mood is shared: compare the ratios. CPU is of
all the exporter's processes but the simulator, which stands for the hardware; the simulated NVML itself runs within
the reader and is counted. Peers: node_exporter (when installed), nvitop-exporter (when installed, with a real NVML),
and prometheus_client's own server rendering the very same samples.
"""

from __future__ import annotations

import compileall
import gzip
import http.client
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import gpuhost_exporter

SECONDS = float(os.environ.get("BENCH_SECONDS", "30"))
ROUNDS = 200
HEALTH_RUNS = 50
FORMATS = {
    "text": {"Accept": "text/plain;version=0.0.4"},
    "OpenMetrics + gzip": {
        "Accept": "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
        "Accept-Encoding": "gzip",
    },
}
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Peer:
    name: str
    command: list[str]
    port: int
    process: subprocess.Popen | None = None
    first_scrape: float = 0.0
    samples: dict[str, int] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    latency: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in FORMATS})
    each_second: list[float] = field(default_factory=list)
    cpu_idle: float = 0.0
    cpu_scraped: float = 0.0
    pss: float = 0.0
    connection: http.client.HTTPConnection | None = None

    def start(self, ready: bytes) -> None:
        begin = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                if ready in self.get("text")[0]:
                    break
            except (OSError, http.client.HTTPException):
                self.connection = None
            if time.monotonic() - begin > 30 or self.process.poll() is not None:
                raise SystemExit(f"{self.name} did not start")
            time.sleep(0.01)
        self.first_scrape = time.monotonic() - begin

    def get(self, kind: str) -> tuple[bytes, float]:
        try:
            return self.ask(kind)
        except http.client.RemoteDisconnected:  # an idle connection that the other side has ended
            self.connection = None
            return self.ask(kind)

    def ask(self, kind: str) -> tuple[bytes, float]:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        begin = time.perf_counter()
        self.connection.request("GET", "/metrics", headers=FORMATS[kind])
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.will_close:
            self.connection = None
        took = time.perf_counter() - begin
        return (gzip.decompress(body) if answer.headers.get("Content-Encoding") == "gzip" else body), took

    def measure_once(self, kind: str) -> None:
        body, took = self.get(kind)
        self.latency[kind].append(took)
        self.samples[kind] = sum(bool(line) and not line.startswith(b"#") for line in body.splitlines())
        self.size[kind] = len(body)

    def pids(self) -> list[int]:
        """The process and its descendants, the simulator left out."""
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            if not _is_simulator(pid):
                found.append(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += [int(word) for word in (task / "children").read_text().split()]
        return found

    def cpu(self) -> float:
        return sum(self.cpu_by_name().values())

    def cpu_by_name(self) -> dict[str, float]:
        """Seconds by the process' name."""
        found: dict[str, float] = {}
        for pid in self.pids():
            head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            words, name = tail.split(), head.partition("(")[2]
            found[name] = found.get(name, 0.0) + (int(words[11]) + int(words[12])) / _TICK
        return found

    def measure_memory(self) -> None:
        total = 0
        for pid in self.pids():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        self.pss = total / 1024

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(10)


def _is_simulator(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith("gpuhost-sim")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def calibration() -> float:
    """Seconds for a fixed loop: how fast this machine is just now."""
    begin = time.perf_counter()
    total = 0
    for number in range(2_000_000):
        total += number
    return time.perf_counter() - begin


def peers(folder: str) -> list[Peer]:
    port = free_port()
    ours = Peer(
        "gpuhost-exporter",
        [
            sys.executable,
            "-m",
            "gpuhost_exporter",
            "serve",
            "--simulate=h100x8:steady",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--storage.path={folder}/state",
            *sys.argv[1:],
        ],
        port,
    )
    found = [ours]
    node_exporter = shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
    if node_exporter:
        port = free_port()
        found.append(Peer("node_exporter", [node_exporter, f"--web.listen-address=127.0.0.1:{port}"], port))
    nvitop = shutil.which("nvitop-exporter")
    if nvitop and Path("/dev/nvidiactl").exists():
        port = free_port()
        found.append(Peer("nvitop-exporter", [nvitop, "--bind-address=127.0.0.1", f"--port={port}"], port))
    return found


def client_peer(ours: Peer, folder: str) -> Peer:
    page = f"{folder}/page"
    Path(page).write_bytes(ours.get("text")[0])
    port = free_port()
    script = str(Path(__file__).with_name("client_peer.py"))
    return Peer("prometheus_client, same samples", [sys.executable, script, page, str(port)], port)


def health_runs(port: int) -> list[float]:
    """Seconds from the start of the interpreter to its exit, as a prolog waits for it. Nobody vouches for this host."""
    command = [sys.executable, "-m", "gpuhost_exporter", "health", f"--url=http://127.0.0.1:{port}"]
    took = []
    for _ in range(HEALTH_RUNS):
        begin = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        took.append(time.perf_counter() - begin)
        if (done.returncode, b"simulated" in done.stdout) != (2, True):
            raise SystemExit(f"health: {done}")
    return took


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1] * 1000


def main() -> None:
    # As any installed package: compiling at each start takes time, and leaves holes in the memory.
    compileall.compile_dir(Path(gpuhost_exporter.__file__).parent, quiet=1)
    folder = tempfile.mkdtemp(prefix="gpuhost-bench-")
    running = peers(folder)
    speed = [calibration()]
    try:
        running[0].start(b"gpuhost_gpu_power_watts")
        for peer in running[1:]:
            peer.start(b"# TYPE")
        time.sleep(20)  # every collector has polled, slow ones too
        running.append(client_peer(running[0], folder))
        running[-1].start(b"# TYPE")
        for _ in range(ROUNDS):
            for kind in FORMATS:
                for peer in running:
                    peer.measure_once(kind)
            time.sleep(0.02)
        speed.append(calibration())
        before = [peer.cpu() for peer in running]
        time.sleep(SECONDS)
        for peer, start in zip(running, before, strict=True):
            peer.cpu_idle = (peer.cpu() - start) * 60 / SECONDS
        before = [peer.cpu() for peer in running]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for peer in running:
                peer.each_second.append(peer.get("OpenMetrics + gzip")[1])
            time.sleep(1.0)
        for peer, start in zip(running, before, strict=True):
            peer.cpu_scraped = (peer.cpu() - start) * 60 / SECONDS
            peer.measure_memory()
        health = health_runs(running[0].port)
        speed.append(calibration())
        report(running, speed)
        print(f"health: {quantile(health, 0.5):.0f} / {quantile(health, 0.99):.0f} ms", end=" ")
        print(f"p50 / p99 of {HEALTH_RUNS} runs, start of Python to exit.")
    finally:
        for peer in running:
            peer.stop()
        shutil.rmtree(folder, ignore_errors=True)


def report(running: list[Peer], speed: list[float]) -> None:
    print(
        "| exporter | samples | bytes as text | text p50 / p99 ms | OpenMetrics + gzip p50 / p99 ms"
        " | the same once a second | CPU s/min unscraped | scraped each second | PSS MiB | first scrape s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for peer in running:
        text, opened = peer.latency["text"], peer.latency["OpenMetrics + gzip"]
        print(
            f"| {peer.name} | {peer.samples['text']} | {peer.size['text']} "
            f"| {quantile(text, 0.5):.1f} / {quantile(text, 0.99):.1f} "
            f"| {quantile(opened, 0.5):.1f} / {quantile(opened, 0.99):.1f} "
            f"| {quantile(peer.each_second, 0.5):.1f} / {quantile(peer.each_second, 0.99):.1f} "
            f"| {peer.cpu_idle:.2f} | {peer.cpu_scraped:.2f} | {peer.pss:.0f} | {peer.first_scrape:.2f} |"
        )
    print(
        f"\n{ROUNDS} interleaved scrapes a format, as fast as all answer, keep-alive; CPU over {SECONDS:.0f} s each.",
        end=" ",
    )
    print("A fixed loop took", ", ".join(f"{value * 1000:.0f}" for value in speed), "ms at start, middle and end.")


if __name__ == "__main__":
    main()
