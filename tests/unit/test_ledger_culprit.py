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


def spin(now, job="j", *, profiled=True):
    return Piece(now - 1, now, held=True, busy=1.0, profiled=profiled, density=0.13, spinning=True, jobs=(job,))


def work(*blocked, writer_blocked=False):
    return Work(0, 1, "process", 0.0, 0.0, 0.0, writer_blocked, False, {}, "", frozenset(blocked))


def told(count, away, *, seconds=40, job="j", works=None, worlds=None, xids=None, profiled=True):
    """A job that has trained on all its GPUs; then all spin but for `away`: index -> fields of its pieces, or `then`,
    what all do once."""
    culprits = Culprits(Thresholds())
    joined = {f"GPU-{index}": Piece(0, 1, held=True, busy=0.9, working=True, jobs=(job,)) for index in range(count)}
    culprits.tick(1.0, joined, {}, (), worlds or {}, {})
    for now in range(2, 2 + seconds):
        pieces = {uuid: spin(now, job, profiled=profiled) for uuid in joined}
        pieces |= {f"GPU-{index}": Piece(now - 1, now, **{"jobs": (job,), **fields}) for index, fields in away.items()}
        culprits.tick(float(now), pieces, works or {}, (), worlds or {}, xids or {})
    return culprits


STANDS = {"held": True, "busy": 0.02, "profiled": True}
WORKS = {"held": True, "busy": 0.6, "profiled": True, "working": True}
GONE = {"held": False, "jobs": ()}
LOST = {"state": "lost", "jobs": ()}


@pytest.mark.parametrize(
    ("away", "evidence"),
    [
        ({3: GONE, 5: GONE}, {"GPU-3": "no_process", "GPU-5": "no_process"}),
        ({3: GONE, 5: LOST}, {"GPU-3": "no_process", "GPU-5": "lost"}),
        ({0: STANDS, 1: STANDS, 7: GONE}, {"GPU-0": "idle", "GPU-1": "blocked", "GPU-7": "no_process"}),
        ({6: {"state": "unknown", "jobs": ()}, 7: STANDS}, {"GPU-6": "unknown", "GPU-7": "idle"}),
    ],
    ids=["two processes killed", "one killed, one lost", "three", "unknown and idle"],
)
def test_all_that_did_not_join_are_named(away, evidence):
    culprits = told(8, away, works={"j": work("GPU-1")})
    assert {each.uuid: each.evidence for each in culprits.found} == evidence
    assert {each.kind for each in culprits.found} == {"not_joined"}
    assert culprits.hung == dict.fromkeys([f"GPU-{index}" for index in range(8)], pytest.approx(40))


@pytest.mark.parametrize(
    ("count", "job", "away"),
    [
        (8, "j", dict.fromkeys(range(1, 8), STANDS)),
        (8, "j", {3: STANDS, 5: WORKS}),
        (8, "host", dict.fromkeys(range(3, 8), STANDS)),
        (8, "user:1000", dict.fromkeys(range(3, 8), GONE)),
    ],
    ids=["a small kernel beside seven idle GPUs", "one that works is not absent", "perhaps two jobs", "of one user"],
)
def test_what_need_not_be_a_hang_is_none(count, job, away):
    culprits = told(count, away, job=job)
    assert not culprits.hung
    assert not [each for each in culprits.found if each.kind == "not_joined"]


def test_half_is_enough_where_jobs_cannot_be_told_apart():
    assert len(told(8, dict.fromkeys(range(4), GONE), job="host").found) == 4


def test_a_job_that_worked_on_without_a_gpu_does_not_miss_it():
    """Eight GPUs, then two: the six that were given up are not blamed when those two hang."""
    culprits = told(8, dict.fromkeys(range(2, 8), GONE), seconds=0)
    for now in range(2, 40):
        pieces = {f"GPU-{index}": Piece(now - 1, now, **WORKS, jobs=("j",)) for index in range(2)}
        pieces |= {f"GPU-{index}": Piece(now - 1, now) for index in range(2, 8)}
        culprits.tick(float(now), pieces, {}, ())
    for now in range(40, 80):
        pieces = {f"GPU-{index}": spin(now) for index in range(2)}
        pieces |= {f"GPU-{index}": Piece(now - 1, now) for index in range(2, 8)}
        culprits.tick(float(now), pieces, {}, ())
    assert culprits.hung.keys() == {"GPU-0", "GPU-1"}
    assert not culprits.found


def test_without_profiling_a_hang_takes_the_minute_that_waiting_takes():
    assert not told(4, {}, seconds=55, profiled=False).hung
    assert told(4, {}, seconds=62, profiled=False).hung
    assert told(4, {}, seconds=32).hung


def test_one_gpu_alone_hangs_only_where_its_job_has_more_elsewhere():
    assert not told(1, {}, seconds=100).hung
    assert not told(1, {}, seconds=100, worlds={"other": 16}).hung
    assert told(1, {}, seconds=100, worlds={"j": 16}).hung


def test_the_last_xid_is_evidence_if_it_came_with_the_hang():
    xids = {"GPU-3": ("31", 0.5), "GPU-5": ("79", -1000.0), "GPU-0": ("13", 0.5)}
    found = told(8, {3: GONE, 5: GONE}, xids=xids).found
    assert found == (
        Culprit("GPU-3", "not_joined", "no_process", "31"),
        Culprit("GPU-5", "not_joined", "no_process", ""),
    )


@pytest.mark.parametrize(
    ("missing", "job", "evidence"),
    [
        ({"held": True, "jobs": ("j",)}, work(), "idle"),
        ({"held": True, "jobs": ("j",)}, work("GPU-2"), "blocked"),
        ({"held": True, "jobs": ("j",)}, work("GPU-0", writer_blocked=True), "idle"),
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
        culprits.tick(float(now), {"GPU-0": spin(now), "GPU-1": spin(now)}, {}, ())
    assert culprits.hung
    culprits.tick(60.0, {"GPU-0": Piece(59, 60), "GPU-1": Piece(59, 60)}, {}, ())
    assert not culprits.hung
