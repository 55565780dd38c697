"""What the latency prober costs: CPU, datagrams and bytes, with one neighbour that it probes and that probes it.

    PYTHONPATH=tests python tests/bench/latency.py

Two probers, a process each as in production, over the loopback. CPU is of one of them, which asks and answers, system
time included.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpuhost_exporter.sources.latency.message import SIZE
from gpuhost_exporter.sources.latency.plan import Plan
from gpuhost_exporter.sources.latency.reader import Reader
from gpuhost_exporter.sources.pipe import Pipe, pair, recv_request

SECONDS = float(os.environ.get("BENCH_SECONDS", "30"))
INTERVALS = (30.0, 5.0)  # as it comes, and the shortest that may be configured
MESSAGES = 40
HEADERS = 28  # bytes of IPv4 and UDP


@dataclass
class Prober:
    pid: int
    pipe: Pipe


def probers(folder: str, interval: float) -> list[Prober]:
    """Host a and host b, each the other's only neighbour."""
    key = f"{folder}/key"
    if not os.path.exists(key):
        with open(key, "w", encoding="ascii", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(f"k1 {secrets.token_hex(32)}\n")
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    started = []
    for own, other, name, peer in ((0, 1, "a", "b"), (1, 0, "b", "a")):
        sockets[own].connect(sockets[other].getsockname())
        ours, theirs = pair()
        pid = os.fork()
        if pid == 0:
            plan = Plan(name, targets=(peer,), neighbours=(peer,), interval=interval, messages=MESSAGES)
            Reader(Pipe(theirs), {peer: sockets[own]}, plan, key).run()
            os._exit(0)
        theirs.close()
        started.append(Prober(pid, Pipe(ours)))
    for each in sockets:
        each.close()
    return started


def waiting(pipe: Pipe) -> Iterator[dict[str, Any]]:
    while pipe.holds() or select.select([pipe], [], [], 0)[0]:
        yield recv_request(pipe)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        running = [(interval, time.monotonic(), probers(folder, interval)) for interval in INTERVALS]
        time.sleep(max(2 * INTERVALS[0], SECONDS))  # the first round comes within the first interval
        for interval, began, both in running:
            seconds = time.monotonic() - began
            rounds = [told for told in waiting(both[0].pipe) if "sent" in told]
            spent = []
            for prober in both:
                os.kill(prober.pid, signal.SIGKILL)
                usage = os.wait4(prober.pid, 0)[2]
                spent.append(usage.ru_utime + usage.ru_stime)
            if not rounds:
                raise SystemExit(f"no round in {seconds:.0f} s")
            sent = sum(each["sent"] for each in rounds) / len(rounds)
            lost = sum(each["lost"] for each in rounds)
            cost = max(spent) * 60 / seconds
            print(
                f"latency prober, one neighbour, a round every {interval:.0f} s: {cost:.3f} CPU s/min; "
                f"{sent:.0f} datagrams of {SIZE} bytes there and as many back a round, "
                f"{2 * sent * (SIZE + HEADERS) / 1000:.1f} kB with headers; {len(rounds)} rounds, {lost} lost"
            )


if __name__ == "__main__":
    main()
