"""What makes a checkpoint, how long it lasts, and which bytes are its own: one GPU, a window of writes a second."""

from __future__ import annotations

import pytest

from gpuhost_exporter.ledger.checkpoint import Watch
from gpuhost_exporter.ledger.piece import Piece, Work
from gpuhost_exporter.ledger.thresholds import Thresholds

TRAIN, STAND, HALF = 1.0, 0.02, 0.5
BEHIND = 3.5  # seconds that are known beyond what is settled
STEP = 0.7  # not the windows' second


def checkpoints(*history, rung="process"):
    """`history`: (share of busy time, MB written, MB made, mount, whether a writer is in D, MB read) of each second."""
    pieces, works = [], []
    for at, (busy, wrote, made, mount, blocked, read) in enumerate(history):
        pieces.append(Piece(at, at + 1.0, held=True, busy=busy, profiled=True, working=busy >= HALF, jobs=("j",)))
        works.append(Work(at, at + 1.0, rung, wrote * 1e6, made * 1e6, read * 1e6, blocked, False, {}, mount))
    watch, found, until = Watch("j", Thresholds()), [], 0.0
    while until < len(history):
        since, until = until, until + STEP
        known = until + BEHIND
        told = watch.advance(
            since, until, [[each for each in pieces if each.at <= known]], [each for each in works if each.at <= known]
        )
        if told:
            found.append(told)
    return found


def second(busy, wrote=0.0, made=None, mount="/data", *, blocked=False, read=0.0):
    return busy, wrote, wrote if made is None else made, mount, blocked, read


CALM = [second(TRAIN)] * 6
SAVES = [second(STAND, 400)] * 2


@pytest.mark.parametrize(
    ("between", "seconds", "megabytes", "mount"),
    [
        pytest.param(SAVES, 2, 800, "/data", id="as it should be"),
        pytest.param([*SAVES, *[second(STAND, 10)] * 3], 5, 830, "/data", id="the last writer is slow"),
        pytest.param([*SAVES, second(HALF, 30)], 2.5, 830, "/data", id="little is in the window in which it ends"),
        pytest.param([*SAVES, *[second(STAND, 1)] * 4], 2.3, 801, "/data", id="a log while the GPUs go on standing"),
        pytest.param(
            [*[second(STAND, 400, mount="/memory")] * 2, *[second(STAND, 400, 0)] * 2],
            4,
            800,
            "/data",
            id="staged and then moved",
        ),
        pytest.param(
            [*SAVES, second(STAND, 300, mount=""), second(STAND, 100, -300, mount="")],
            4,
            800,
            "/data",
            id="a copy that tells so at its end",
        ),
        pytest.param([second(STAND, 30)] * 20, 20, 600, "/data", id="slow storage"),
        pytest.param([*SAVES, *[second(STAND, blocked=True)] * 90], 92, 800, "/data", id="an fsync, or storage hangs"),
        pytest.param(
            [*SAVES, *[second(STAND, blocked=True, read=30)] * 90], 32, 800, "/data", id="it waits for what it reads"
        ),
        pytest.param(
            [*SAVES, *[second(STAND, blocked=True)] * 5, *[second(STAND)] * 10], 7, 800, "/data", id="it goes on idle"
        ),
    ],
)
def test_it_lasts_while_the_gpus_stand_for_it_and_has_what_was_made(between, seconds, megabytes, mount):
    (found,) = checkpoints(*CALM, *between, *CALM)
    assert found.started == pytest.approx(6.0, abs=0.1)
    assert found.seconds == pytest.approx(seconds, abs=STEP / 2)
    assert found.bytes / 1e6 == pytest.approx(megabytes, rel=0.01)
    assert (found.mode, found.mount) == ("sync", mount)


@pytest.mark.parametrize("calm", range(5, 13))
def test_what_is_written_while_the_gpus_work_again_is_beside_them_wherever_the_steps_fall(calm):
    """A second in which they stand and little is written yet, and two of writing: the former is the smaller part."""
    calm = [second(TRAIN)] * calm
    (beside,) = checkpoints(*calm, second(STAND, 150), second(TRAIN, 400), second(TRAIN, 100), *CALM)
    assert (beside.mode, beside.bytes / 1e6) == ("async", pytest.approx(650, rel=0.01))
    (sync,) = checkpoints(*calm, second(STAND, 400), second(HALF, 250), *CALM)
    assert (sync.mode, sync.bytes / 1e6) == ("sync", pytest.approx(650, rel=0.01))


@pytest.mark.parametrize(
    "between",
    [
        pytest.param([second(STAND, 400, 0)] * 3, id="data that is copied"),
        pytest.param([second(STAND, 100)] * 2, id="less than 256 MB"),
        pytest.param(
            [second(STAND, 100), *[second(STAND, blocked=True)] * 60, *[second(STAND, 100)] * 2],
            id="nor with what comes long after",
        ),
        pytest.param([second(TRAIN, 400)] * 3, id="written without a stall"),
        pytest.param([second(STAND, 15)] * 60, id="as slowly as logs, though much in the end"),
        pytest.param([*[second(STAND, 30)] * 4, *[second(TRAIN, 30)] * 2] * 8, id="slowly, with work between"),
        pytest.param([second(TRAIN, 30)] * 20, id="slowly beside work"),
    ],
)
def test_nothing_else_makes_one(between):
    assert not checkpoints(*CALM, *between, *CALM)


def test_slow_writes_that_may_be_anybodys_make_none():
    history = [*CALM, *[second(STAND, 30)] * 20, *CALM]
    assert checkpoints(*history, rung="cgroup")
    assert not checkpoints(*history, rung="host")
