"""What the exporter costs with the ledger on, on a busy host, and what it costs who it looks at.

    PYTHONPATH=tests python tests/bench/ledger.py

CPU is of all the exporter's processes, unscraped; the simulated NVML is counted, the simulator is not. First a
simulated h100x8 host, with its fabric and its drives, once without the ledger and once with it; then this machine's own
/proc and /sys with 8 GPUs simulated: 64 processes on them, 40 threads each, among 2,000 others.
Then the calls of a process with 500 threads are timed in turns, while it holds a GPU and while it holds none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import Peer, calibration, free_port
from support.crowd import Victim, others
from support.worker import Worker

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.sim import control

SECONDS = float(os.environ.get("BENCH_SECONDS", "30"))
GPUS, A_GPU, THREADS, OTHERS = 8, 8, 40, 2000
AIM = 1.2  # CPU seconds a minute
TURNS, TURN_SECONDS = 8, 4.0


@contextlib.contextmanager
def exporter(folder: str, *more: str) -> Iterator[Peer]:
    port = free_port()
    state = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-m", "gpuhost_exporter", "serve", f"--web.listen-address=127.0.0.1:{port}"]
    peer = Peer("gpuhost-exporter", [*command, f"--storage.path={state}", "--simulate=h100x8:steady", *more], port)
    try:
        peer.start(b"gpuhost_gpu_power_watts")
        time.sleep(20)  # every collector has polled, slow ones too
        yield peer
    finally:
        peer.stop()


def cost(peer: Peer) -> dict[str, float]:
    """CPU seconds a minute by process, and in all."""
    before, begin = peer.cpu_by_name(), time.monotonic()
    time.sleep(SECONDS)
    passed = time.monotonic() - begin
    spent = {name: (now - before.get(name, 0.0)) * 60 / passed for name, now in peer.cpu_by_name().items()}
    return {**spent, "all": sum(spent.values())}


def hold(path: str, holders: dict[int, tuple[int, ...]]) -> None:
    control.change(path, [control.GpuChange(gpu, pids) for gpu, pids in holders.items()], SystemClock())


def latency(path: str, holders: dict[int, tuple[int, ...]], victim: Victim) -> dict[bool, list[float]]:
    """Microseconds of its calls, in order: while it holds no GPU, and while it holds one."""
    took: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * TURNS):
        held = turn % 2 == 1
        hold(path, {**holders, 0: (*holders[0][:-1], victim.pid)} if held else holders)
        time.sleep(2.0)  # until that is seen
        victim.start(TURN_SECONDS)
        took[held] += victim.finish()
    return {held: sorted(values) for held, values in took.items()}


def quantile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def row(name: str, spent: dict[str, float]) -> None:
    parts = ", ".join(f"{part} {value:.2f}" for part, value in spent.items() if part != "all")
    print(f"| {name} | {spent['all']:.2f} | {parts} |", flush=True)


def main() -> None:
    speed = [calibration()]
    print(f"| host | CPU s/min (aim {AIM}) | of these |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="gpuhost-bench-") as folder:
        for name, more in (("simulated, no ledger", ("--no-collector.ledger",)), ("simulated", ())):
            with exporter(folder, *more) as peer:
                row(name, cost(peer))
        speed.append(calibration())
        path = str(Path(folder) / "control.json")
        real = (f"--simulate.control={path}",)
        control.create(path, "h100x8", "steady", SystemClock(), real_roots=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(others(OTHERS))
            workers = [stack.enter_context(Worker()) for _ in range(GPUS * A_GPU)]
            for worker in workers:
                worker.do("threads", THREADS)
            victim = stack.enter_context(Victim())
            holders = {gpu: tuple(each.pid for each in workers[gpu::GPUS]) for gpu in range(GPUS)}
            hold(path, holders)
            with exporter(folder, *real) as peer:
                row(f"{GPUS * A_GPU} GPU processes, {OTHERS} others", cost(peer))
                took = latency(path, holders, victim)
        speed.append(calibration())
    print(
        "\n| two calls of a process with 500 threads | p50 us | p99 us | p99.9 us | p99.99 us |\n|---|---|---|---|---|"
    )
    shares = (0.5, 0.99, 0.999, 0.9999)
    for held, name in ((False, "not looked at"), (True, "looked at each second")):
        print(f"| {name} |", " | ".join(f"{quantile(took[held], share):.0f}" for share in shares), "|")
    ratios = (quantile(took[True], share) / quantile(took[False], share) for share in shares)
    print("| ratio |", " | ".join(f"{ratio:.2f}" for ratio in ratios), "|")
    print(f"\n{len(took[True])} and {len(took[False])} pairs of calls in {2 * TURNS} turns.", end=" ")
    print("A fixed loop took", ", ".join(f"{value * 1000:.0f}" for value in speed), "ms at start, middle and end.")


if __name__ == "__main__":
    main()
