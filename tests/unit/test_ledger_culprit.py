"""Who holds a job up."""

from __future__ import annotations

import pytest
from support.traces import Trace

from gpuhost_exporter.ledger.culprit import Culprit, Culprits
from gpuhost_exporter.ledger.piece import Piece, Work
from gpuhost_exporter.ledger.thresholds import Thresholds


def watched(scenario, seconds, count=8):
    trace, culprits = Trace((scenario, seconds), count=count), Culprits(Thresholds())
    for tick in range(seconds + 1):
        trace.tick(1000.0 + tick)
        ledger = trace.ledger
        culprits.tick(trace.now, ledger.latest, ledger.works, ledger.checkpoints_running())
    return trace, culprits


@pytest.mark.parametrize(
    ("scenario", "index", "kind", "evidence"),
    [
        ("gpu-lost", 3, "not_joined", "lost"),
        ("xid-79", 6, "not_joined", "lost"),
        ("nccl-hang", 6, "not_joined", "idle"),
        ("straggler", 5, "straggler", "clock"),
        ("thermal", 2, "straggler", "heat"),
    ],
)
def test_the_one_that_the_others_wait_for_is_named_with_the_reason(scenario, index, kind, evidence):
    trace, culprits = watched(scenario, 100)
    assert culprits.found == (Culprit(trace.gpus[index].uuid, kind, evidence),)


@pytest.mark.parametrize("scenario", ["steady", "idle", "checkpoint-sync", "checkpoint-stall", "data-starved"])
def test_nobody_is_blamed_where_all_do_the_same(scenario):
    assert watched(scenario, 100)[1].found == ()


def test_a_hang_is_told_after_half_a_minute_only():
    assert not watched("nccl-hang", 48)[1].hung
    assert watched("nccl-hang", 52)[1].hung


def spin(now):
    return Piece(now - 1, now, held=True, busy=1.0, profiled=True, density=0.13, spinning=True, jobs=("j",))


def work(*, blocked=False):
    return Work(0, 1, "process", 0.0, 0.0, 0.0, blocked, False, {}, "")


@pytest.mark.parametrize(
    ("missing", "job", "evidence"),
    [
        ({"held": True, "jobs": ("j",)}, work(), "idle"),
        ({"held": True, "jobs": ("j",)}, work(blocked=True), "blocked"),
        ({"held": True, "jobs": ("j",), "busy": 0.9, "working": True}, work(), "busy"),
        ({"held": False}, work(), "no_process"),
        ({"state": "lost"}, work(), "lost"),
        ({"state": "unknown"}, None, "unknown"),
    ],
)
def test_how_the_one_that_did_not_join_looks(missing, job, evidence):
    culprits = Culprits(Thresholds())
    joined = {f"GPU-{index}": Piece(0, 1, held=True, jobs=("j",)) for index in range(4)}
    culprits.tick(1.0, joined, {}, ())
    for now in range(2, 40):
        pieces = {uuid: spin(now) for uuid in joined} | {"GPU-2": Piece(now - 1, now, **missing)}
        culprits.tick(float(now), pieces, {"j": job} if job else {}, ())
    assert culprits.found == (Culprit("GPU-2", "not_joined", evidence),)


def test_a_job_that_hangs_for_another_host_hangs_without_a_culprit_here():
    culprits = Culprits(Thresholds())
    for now in range(1, 60):
        culprits.tick(float(now), {f"GPU-{index}": spin(now) for index in range(4)}, {}, ())
    assert culprits.hung == {f"GPU-{index}": pytest.approx(59) for index in range(4)}
    assert not culprits.found


def test_ranks_that_wait_for_a_checkpoint_do_not_hang():
    culprits = Culprits(Thresholds())
    for now in range(1, 60):
        culprits.tick(float(now), {f"GPU-{index}": spin(now) for index in range(4)}, {}, {"j": 0.0})
    assert not culprits.hung
    assert not culprits.found


def test_a_job_that_has_ended_is_forgotten():
    culprits = Culprits(Thresholds())
    for now in range(1, 60):
        culprits.tick(float(now), {"GPU-0": spin(now)}, {}, ())
    assert culprits.hung
    culprits.tick(60.0, {"GPU-0": Piece(59, 60)}, {}, ())
    assert not culprits.hung
