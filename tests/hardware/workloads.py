"""Records what NVML tells of one GPU under known work: what the ledger's thresholds are held against.

    python tests/hardware/workloads.py OUT.json [--seconds 20] [--gpu 0]

Each work runs alone, in processes of its own, and has the GPU to itself: let nothing else use it meanwhile. Needs
nvidia-ml-py, and PyTorch with CUDA for the work. Settings are left as they are. The file holds the exporter's own
readings, a second each, without UUIDs and processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "exporter")]  # as a program it finds only its own folder

from hardware.record import HurriedClock  # noqa: E402

from gpuhost_exporter.sources.nvml.calls import DriverDown, load  # noqa: E402
from gpuhost_exporter.sources.nvml.reader import Reader  # noqa: E402
from gpuhost_exporter.sources.nvml.readings import Activity, Process  # noqa: E402

FORMAT = 1
# Work -> how many processes do it, and what it is: a column of the confusion matrix.
WORK = {
    "gemm": (1, "compute"),
    "two processes": (2, "compute"),
    "memset": (1, "compute"),
    "spin": (1, "waiting"),
    "copies to the host": (1, "copies"),
    "idle": (1, "held_idle"),
}
_SETTLING_SECONDS = 3.0
_PROGRAM = """
import sys, time
import torch
work, device = sys.argv[1], torch.device("cuda", int(sys.argv[2]))
torch.cuda.set_device(device)
if work in ("gemm", "two processes"):
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    step = lambda: torch.mm(a, a)
elif work == "memset":
    a = torch.empty(1 << 30, device=device, dtype=torch.uint8)
    step = a.zero_
elif work == "spin":  # one block that counts cycles, as a collective's kernel does while it waits
    step = lambda: torch.cuda._sleep(100_000_000)
elif work == "copies to the host":
    a = torch.empty(1 << 30, device=device, dtype=torch.uint8)
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    step = lambda: host.copy_(a)
else:
    a = torch.empty(1 << 20, device=device, dtype=torch.uint8)
    step = lambda: time.sleep(0.1)
step(), torch.cuda.synchronize(device)
print("ready", flush=True)
while True:
    step(), torch.cuda.synchronize(device)
"""


@contextlib.contextmanager
def working(work: str, gpu: int) -> Iterator[None]:
    """The work, from when it runs."""
    command = [sys.executable, "-c", _PROGRAM, work, str(gpu)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(WORK[work][0])]
    try:
        for child in children:
            assert child.stdout
            if child.stdout.readline() != b"ready\n":
                raise SystemExit(f"{work}: PyTorch could not run it; what it said is above")
        time.sleep(_SETTLING_SECONDS)
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def watch(nv: Any, gpu: int, seconds: int, period: float = 1.0) -> list[dict[str, Any]]:
    """Readings of the GPU, a period each; the first has nothing before it and is left out. Raises DriverDown."""
    clock = HurriedClock()
    reader = Reader(nv, clock, lambda _gpu, _call: None)
    found = []
    try:
        uuid = next(each.uuid for each in reader.open().gpus if each.index == gpu)
        for number in range(seconds + 1):
            clock.hurry()
            batch = reader.read("activity", frozenset())
            activity = next(each for each in batch.readings if isinstance(each, Activity) and each.uuid == uuid)
            if number:
                found.append(asdict(activity) | {"uuid": "", "processes": len(activity.processes or ())})
            time.sleep(period)
    finally:
        reader.close()
    return found


def restored(told: dict[str, Any]) -> Activity:
    """A reading of a recording; its processes have numbers only."""
    fields = {name: tuple(map(tuple, value)) if isinstance(value, list) else value for name, value in told.items()}
    return Activity(**{**fields, "processes": tuple(Process(pid, None) for pid in range(told["processes"]))})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record what NVML tells of a GPU under known work.")
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--seconds", type=int, default=20, metavar="N", help="of each work (default 20)")
    parser.add_argument("--gpu", type=int, default=0, metavar="INDEX")
    options = parser.parse_args(arguments)
    try:
        nv, runs = load(), {}
        for work in WORK:
            with working(work, options.gpu):
                runs[work] = watch(nv, options.gpu, options.seconds)
    except DriverDown as down:
        print(f"nothing to record: {down.state}: {down}", file=sys.stderr)
        return 1
    options.out.write_text(json.dumps({"format": FORMAT, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out}: {sum(map(len, runs.values()))} readings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
