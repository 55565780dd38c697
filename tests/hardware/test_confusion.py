"""What the ledger takes recorded work for: the confusion matrix, by recording.

Simulated GPUs stand in to prove the tools. They are no evidence for the thresholds, and count for nothing here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hardware.workloads import WORK, restored, watch

from gpuhost_exporter.clock import SystemClock
from gpuhost_exporter.ledger.classify import Around, shares, waits
from gpuhost_exporter.ledger.piece import Usual, of_activity
from gpuhost_exporter.ledger.thresholds import Thresholds
from gpuhost_exporter.sim import control
from gpuhost_exporter.sim.nvml import SimNvml

RECORDINGS = sorted((Path(__file__).parent / "recordings" / "workloads").glob("*.json"))
FLOOR = 0.9
LEVELS = {
    "gemm": {"graphics": 0.99, "sm": 0.95, "tensor": 0.9, "dram": 0.3, "nvlink": 0.0, "pcie_tx": 0.0, "pcie_rx": 0.0},
    "spin": {"graphics": 1.0, "sm": 0.01, "tensor": 0.0, "dram": 0.0, "nvlink": 0.0, "pcie_tx": 0.0, "pcie_rx": 0.0},
    "copies to the host": {"graphics": 0.0, "sm": 0.0, "tensor": 0.0, "dram": 0.02, "nvlink": 0.0, "pcie_tx": 20e9},
    "idle": {"graphics": 0.0, "sm": 0.0, "tensor": 0.0, "dram": 0.0, "nvlink": 0.0, "pcie_tx": 0.0, "pcie_rx": 0.0},
}


def taken_for(readings):
    """How many seconds each account would get, copies for themselves."""
    limits, found, spun, before = Thresholds(), Counter(), 0.0, None
    pieces = []
    for told in readings:
        activity = restored(told)
        pieces.append(of_activity(activity, before, activity.since, limits, Usual()))
        before = activity
    for piece, following in zip(pieces, [*pieces[1:], pieces[-1]], strict=True):
        waiting = waits(piece, following=following.spinning, spun=spun, limits=limits)
        spun = spun + piece.seconds if piece.spinning else 0.0
        booked = {"copies": 1.0} if piece.copying else shares(piece, Around(waiting=waiting), limits)
        for account, share in booked.items():
            found[account] += share * piece.seconds
    return found


def matrix(runs):
    return {work: taken_for(readings) for work, readings in runs.items()}


def tell(name, found):
    columns = sorted({account for counts in found.values() for account in counts})
    print(f"\n{name}: share of the time\n{'work':20}" + "".join(f"{account:>14}" for account in columns))
    for work, counts in found.items():
        print(f"{work:20}" + "".join(f"{counts[account] / counts.total():14.2f}" for account in columns))


def share(counts, account):
    return counts[account] / counts.total()


def test_the_recorder_and_the_matrix_work_on_a_simulated_gpu(tmp_path):
    path = str(tmp_path / "control.json")
    control.create(path, "h100x8", "steady", SystemClock())
    runs = {}
    for work, levels in LEVELS.items():
        control.change(path, [control.GpuChange(0, None, levels)], SystemClock())
        runs[work] = watch(SimNvml(path, SystemClock()), 0, 4, period=0.12)[1:]
    found = matrix(json.loads(json.dumps(runs)))
    for work, counts in found.items():
        assert share(counts, WORK[work][1]) >= FLOOR, (work, counts)


@pytest.mark.skipif(not RECORDINGS, reason="no recording of work on a real GPU yet")
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_work_is_taken_for_what_it_was(recording, capsys):
    found = matrix(json.loads(recording.read_text())["runs"])
    with capsys.disabled():
        tell(recording.stem, found)
    for work, counts in found.items():
        assert share(counts, WORK[work][1]) >= FLOOR, (work, counts)
