"""What a GPU's network adapters carried, as evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuhost_exporter.ledger.network import Network, Networks
from gpuhost_exporter.ledger.piece import Piece
from gpuhost_exporter.ledger.thresholds import Thresholds

LIMITS = Thresholds()
SPIN = Piece(10.0, 11.0, held=True, busy=1.0, profiled=True, lone=True, spinning=True)
TRAIN = Piece(10.0, 11.0, held=True, busy=1.0, profiled=True, working=True)


def judged(piece, *windows, uuid="GPU-0"):
    networks = Networks(LIMITS)
    networks.take(11.0, [Network(since, at, {"GPU-0": rate}) for since, at, rate in windows])
    found = networks.beside(uuid, piece)
    return found.spinning, found.exchanging


@pytest.mark.parametrize(
    ("rate", "spins", "exchanges"),
    [(0.0, True, False), (0.4e9, True, False), (0.7e9, False, False), (1e9, False, True), (20e9, False, True)],
)
def test_much_is_an_exchange_little_is_no_wait_and_nothing_changes_nothing(rate, spins, exchanges):
    assert judged(SPIN, (10.0, 11.0, rate)) == (spins, exchanges)


@pytest.mark.parametrize(
    ("windows", "exchanges"),
    [
        pytest.param([(11.2, 12.2, 20e9)], True, id="the first look came a tick late: what follows tells"),
        pytest.param([(8.0, 9.0, 20e9)], True, id="the present, before its own window has come"),
        pytest.param([(12.6, 13.6, 20e9)], False, id="too late"),
        pytest.param([(7.0, 8.4, 20e9)], False, id="too early"),
        pytest.param([(9.2, 10.2, 0.0), (10.2, 11.2, 20e9)], True, id="the one that overlaps most"),
        pytest.param([(9.2, 10.2, 20e9), (10.2, 11.2, 0.0)], False, id="and not the one before"),
    ],
)
def test_the_nearest_window_counts(windows, exchanges):
    assert judged(SPIN, *windows)[1] is exchanges


def test_it_says_nothing_of_a_gpu_that_computes_or_of_another_one():
    assert judged(TRAIN, (10.0, 11.0, 20e9)) == (False, False)
    assert judged(SPIN, (10.0, 11.0, 20e9), uuid="GPU-1") == (True, False)


def test_without_profiling_traffic_is_no_wait_and_no_account_of_its_own():
    assert judged(replace(SPIN, profiled=False), (10.0, 11.0, 20e9)) == (False, False)


def test_adapters_are_wanted_while_a_gpu_is_lone_and_a_little_longer():
    networks = Networks(LIMITS)
    assert not networks.wanted(0.0, [TRAIN])
    assert networks.wanted(1.0, [TRAIN, SPIN])
    assert networks.wanted(3.0, [TRAIN])
    assert not networks.wanted(4.0, [TRAIN])


LONG = (0.0, 100.0)


@pytest.mark.parametrize(
    ("sent", "kernel", "stood", "expected"),
    [
        pytest.param(3e9, 3e9, LONG, 3e9, id="through the kernel"),
        pytest.param(3e9, 3e9, (0.0, 10.5), 3e9, id="the same when the GPUs work again"),
        pytest.param(3e9, 0.0, LONG, 3e9, id="RDMA while the GPUs stand"),
        pytest.param(3e9, 0.0, (0.0, 10.5), 0.0, id="RDMA that may be a collective"),
        pytest.param(3e9, None, (10.5, 99.0), 0.0, id="the same with no interface to be seen"),
        pytest.param(40e6, 40e6, LONG, 0.0, id="what a host sends anyway"),
    ],
)
def test_what_counts_as_sent(sent, kernel, stood, expected):
    networks = Networks(LIMITS)
    networks.take(11.0, [Network(10.0, 11.0, {}, sent, kernel)])
    assert networks.uploaded(9.0, 30.0, stood) == expected
    assert networks.uploaded(10.5, 30.0, stood) == expected / 2
    assert networks.told_after(10.0) == (0.0 if kernel is None else 1.0)


def test_what_the_hosts_own_drives_take_was_put_somewhere_though_nobody_called_write():
    networks = Networks(LIMITS)
    networks.drives(10.0, 11.0, 2e9)
    assert networks.uploaded(10.0, 11.0, LONG) == 2e9
    assert networks.told_after(10.0) == 0.0, "it says nothing of the network"
    networks.take(30.0, ())
    assert networks.uploaded(10.0, 11.0, LONG) == 0.0, "forgotten"


def test_adapters_are_wanted_for_copies_out_of_a_gpu_and_while_a_job_saves():
    networks = Networks(LIMITS)
    assert networks.wanted(1.0, [replace(TRAIN, copied=1e9)])
    assert not networks.wanted(5.0, [TRAIN])
    assert networks.wanted(6.0, [TRAIN], saving=True)


def test_what_is_old_is_forgotten():
    networks = Networks(LIMITS)
    networks.take(11.0, [Network(10.0, 11.0, {"GPU-0": 20e9})])
    assert networks.beside("GPU-0", SPIN).exchanging
    networks.take(22.0, ())
    assert networks.beside("GPU-0", SPIN).spinning
