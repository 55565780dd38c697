"""The probing of hosts by each other, on a network and a clock of the test's own."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter

import pytest

from gpuhost_exporter.averages import median
from gpuhost_exporter.sources.latency.message import SIZE, Keyring, Kind, Message
from gpuhost_exporter.sources.latency.plan import WARM_UP, Plan
from gpuhost_exporter.sources.latency.prober import Hooks, Prober

RING = Keyring("k", {"k": b"k" * 32})
OTHER = Keyring("k", {"k": b"o" * 32})
MESSAGES = 40
ASKED = WARM_UP + MESSAGES
HELLOS = 3
INTERVAL = 30.0


class Network:
    """Hosts whose datagrams take `delay` seconds each way, unless `fate` says otherwise: it takes sender, receiver,
    datagram and returns the delays of the copies to deliver, none for a loss.
    """

    def __init__(self, delay=50e-6):
        self.time = 100.0
        self.delay = delay
        self.fate = lambda sender, receiver, datagram: (self.delay,)
        self.probers = {}
        self.starts = True  # what the exporter says when it is to start a server; None: nothing
        self.sent = []
        self.rounds, self.skipped, self.rejected, self.runs = [], [], Counter(), []
        self._order = itertools.count()
        self._random = itertools.count(1)
        self._queue = []

    def add(self, name, targets=(), neighbours=None, ring=RING, **plan):
        plan = {"interval": INTERVAL, "messages": MESSAGES, **plan}
        plan = Plan(name, tuple(targets), tuple(neighbours if neighbours is not None else targets), **plan)
        hooks = Hooks(
            now=lambda: self.time,
            send=lambda peer, datagram: self.send(name, peer, datagram),
            random=lambda count: (next(self._random) * 0x9E3779B97F4A7C15 % 2 ** (8 * count)).to_bytes(count, "big"),
            run=lambda role, peer: self._run(name, role, peer),
            finished=lambda peer, seconds, sent, lost: self.rounds.append((name, peer, seconds, sent, lost)),
            skipped=lambda peer, transport, reason: self.skipped.append((name, peer, transport, reason)),
            rejected=lambda peer, reason: self.rejected.update([(name, peer, reason)]),
        )
        self.probers[name] = Prober(plan, ring, hooks)
        return self.probers[name]

    def send(self, sender, receiver, datagram):
        self.sent.append((self.time, sender, receiver, datagram))
        for delay in self.fate(sender, receiver, datagram):
            self.inject(sender, receiver, datagram, delay)
        return self.time

    def _run(self, name, role, peer):
        self.runs.append((name, role, peer))
        if role == "server" and self.starts is not None:
            self.probers[name].server_started(peer, started=self.starts)

    def inject(self, sender, receiver, datagram, delay=0.0):
        heapq.heappush(self._queue, (self.time + delay, next(self._order), sender, receiver, datagram))

    def run(self, seconds):
        end = self.time + seconds
        while True:
            due = min(prober.tick() for prober in self.probers.values())
            if self._queue and self._queue[0][0] <= min(due, end):
                self.time, _, sender, receiver, datagram = heapq.heappop(self._queue)
                prober = self.probers.get(receiver)
                if prober and prober.may_read(sender):
                    prober.received(sender, datagram, self.time)
            elif due > end:
                self.time = end
                return
            else:
                self.time = max(self.time, due)

    def kinds(self, sender):
        return Counter(RING.open(datagram, sender, to).kind for _, who, to, datagram in self.sent if who == sender)


@pytest.fixture
def network():
    return Network()


def pair(network, **plan):
    network.add("a", ["b"], **plan)
    network.add("b", (), ["a"])
    return network


def test_a_round_is_some_tens_of_messages_each_answered_once(network):
    pair(network).run(INTERVAL)
    [(name, peer, seconds, sent, lost)] = network.rounds
    assert (name, peer, len(seconds), sent, lost) == ("a", "b", MESSAGES, ASKED + 1, 0)
    assert seconds == pytest.approx([100e-6] * MESSAGES)
    assert network.kinds("a") == {Kind.HELLO: 1, Kind.PING: ASKED}
    assert network.kinds("b") == {Kind.WELCOME: 1, Kind.PONG: ASKED}
    assert not network.rejected
    assert not network.skipped


def test_rounds_come_once_an_interval_and_no_oftener(network):
    pair(network).run(20 * INTERVAL)
    assert len(network.rounds) == 20
    hellos = [at for at, who, to, datagram in network.sent if RING.open(datagram, who, to).kind is Kind.HELLO]
    assert {round(later - earlier, 6) for earlier, later in itertools.pairwise(hellos)} == {INTERVAL}


def test_a_millisecond_more_on_the_way_is_a_millisecond_more_in_the_median(network):
    pair(network).run(INTERVAL)
    network.delay += 0.5e-3
    network.run(INTERVAL)
    before, after = (median(found[2]) for found in network.rounds)
    assert after - before == pytest.approx(1e-3, rel=1e-9)


def test_every_lost_question_or_answer_counts_once(network):
    dropped = Counter()
    order = itertools.count(1)

    def fate(sender, receiver, datagram):
        if next(order) % 101 == 0:
            dropped[sender] += 1
            return ()
        return (network.delay,)

    network.fate = fate
    pair(network).run(100 * INTERVAL)
    assert min(dropped.values()) > 30, "both directions were hit"
    sent, lost = (sum(found[place] for found in network.rounds) for place in (3, 4))
    assert lost == dropped.total()
    assert sent == network.kinds("a").total()
    assert sum(len(found[2]) for found in network.rounds) >= sent - lost - len(network.rounds) * (WARM_UP + 1)


@pytest.mark.parametrize("welcomed", [False, True], ids=["never there", "dies in a round"])
def test_a_peer_that_is_down_is_given_up_after_a_few_messages(network, welcomed):
    pair(network)
    answered = itertools.count()
    network.fate = lambda sender, *_: (network.delay,) if welcomed and next(answered) < 30 else ()
    network.run(INTERVAL)
    [(_, _, seconds, sent, lost)] = network.rounds
    assert lost == (5 if welcomed else HELLOS)
    assert sent == (15 + 5 if welcomed else HELLOS)
    assert len(seconds) == (14 - WARM_UP if welcomed else 0)
    network.run(INTERVAL)
    assert len(network.rounds) == 2, "it is tried again at the next regular time"


def test_a_slow_peer_is_lost_messages_and_its_late_answers_are_no_attack(network):
    pair(network).run(INTERVAL)
    network.delay = 0.75
    network.run(INTERVAL)
    [_, (_, _, seconds, sent, lost)] = network.rounds
    assert (seconds, sent, lost) == ((), HELLOS, HELLOS)
    assert not network.rejected


def test_a_peer_that_is_slow_but_in_time_is_measured(network):
    network.delay = 0.2
    pair(network).run(INTERVAL)
    assert median(network.rounds[0][2]) == pytest.approx(0.4)
    assert network.rounds[0][4] == 0


@pytest.mark.parametrize(
    "garbage",
    [b"", b"x", bytes(SIZE), b"gpl1" + bytes(SIZE - 4), b"y" * (SIZE + 1)],
    ids=["empty", "short", "zeros", "right magic", "long"],
)
def test_garbage_is_neither_answered_nor_in_the_way(network, garbage):
    pair(network).run(1.0)
    for receiver, sender in (("a", "b"), ("b", "a")):
        for _ in range(20):
            network.inject(sender, receiver, garbage)
    network.run(INTERVAL)
    assert len(network.rounds[0][2]) == MESSAGES
    assert network.rounds[0][4] == 0
    assert network.rejected.total() == 40
    assert network.sent == [entry for entry in network.sent if len(entry[3]) == SIZE]
    assert network.kinds("b") == {Kind.WELCOME: 1, Kind.PONG: ASKED}, "an answer to each question, none to garbage"


@pytest.mark.parametrize(
    ("ring", "reason"),
    [(OTHER, "forged"), (Keyring("z", {"z": b"k" * 32}), "unknown_key")],
    ids=["another key", "another id"],
)
def test_who_has_another_key_gets_no_answer(network, ring, reason):
    network.add("a", ["b"])
    network.add("b", (), ["a"], ring=ring)
    network.run(INTERVAL)
    assert network.rejected == {("b", "a", reason): HELLOS}
    assert [found[2:] for found in network.rounds] == [((), HELLOS, HELLOS)]
    assert not [entry for entry in network.sent if entry[1] == "b"]


def test_nothing_that_was_said_once_is_taken_twice(network):
    """Every datagram of a round sent again, at once and after the next round: no answer but BUSY or WELCOME to a HELLO,
    which begin nothing, and no measured figure changes.
    """
    pair(network)
    network.fate = lambda *_: (network.delay, network.delay * 1.5)
    network.run(INTERVAL)
    recorded = [entry[1:] for entry in network.sent]
    assert network.kinds("b")[Kind.PONG] == ASKED
    assert network.rounds[0][2:] == (pytest.approx([100e-6] * MESSAGES), ASKED + 1, 0)
    network.fate = lambda *_: (network.delay,)
    network.run(INTERVAL)
    network.sent.clear()
    network.rejected.clear()
    for sender, receiver, datagram in recorded:
        network.inject(sender, receiver, datagram)
        network.run(0.02)
    assert network.kinds("b") == {Kind.WELCOME: 1}
    assert network.rejected == {("b", "a", "replayed"): ASKED, ("a", "b", "replayed"): ASKED + 2 + 1}
    assert not network.kinds("a")


def test_a_hello_heard_again_does_not_end_the_round_under_way(network):
    pair(network).run(6.0)
    hello = next(entry[3] for entry in network.sent)
    network.time = 100.0 + INTERVAL
    while not network.kinds("a")[Kind.PING] > ASKED + 10:
        network.run(0.01)
    network.inject("a", "b", hello)
    network.run(5.0)
    assert network.rounds[1][3:] == (ASKED + 1, 0)


def test_hosts_of_a_ring_measure_one_at_a_time_and_put_each_other_off(network):
    names = ("a", "b", "c")
    for place, name in enumerate(names):
        network.add(name, [names[(place + 1) % 3]], [other for other in names if other != name])
    network.run(40 * INTERVAL)
    rounds = Counter((found[0], found[1]) for found in network.rounds)
    assert set(rounds) == {("a", "b"), ("b", "c"), ("c", "a")}
    assert min(rounds.values()) >= 38
    assert all(found[4] == 0 for found in network.rounds)
    busy, asked = {}, []
    for at, who, to, datagram in network.sent:
        if RING.open(datagram, who, to).kind is Kind.PING:
            for host in (who, to):
                edge, last = busy.get(host, (None, 0.0))
                assert edge in (None, (who, to)) or at - last > 0.005, "no host is in two rounds at once"
                busy[host] = ((who, to), at)
            asked.append(at)
    assert asked


def test_a_busy_peer_is_tried_again_and_then_left_for_this_time(network):
    network.add("b", ["c"], ["a", "c"], patience=100.0)
    network.run(5.0)  # by now it waits for c, which is not there
    network.add("a", ["b"])
    network.run(INTERVAL)
    assert network.skipped == [("a", "b", "tcp", "peer_busy")]
    assert network.kinds("a") == {Kind.HELLO: 3}
    assert network.kinds("b") == {Kind.HELLO: 1, Kind.BUSY: 3}
    assert not network.rounds


def test_what_a_neighbour_may_send_is_bounded(network):
    pair(network).run(INTERVAL)
    network.sent.clear()
    prober = network.probers["b"]
    hello = RING.seal(Message(Kind.HELLO, 1, b"n" * 16), "a", "b")
    for _ in range(100_000):
        network.time += INTERVAL / 100_000
        if prober.may_read("a"):
            prober.received("a", hello, network.time)
    rounds = len(network.sent) / (ASKED + 2 * HELLOS)
    assert 4 <= rounds <= 8.1, "a bucket, and what fills it in an interval"
    assert network.rejected["b", "a", "rate"] > 0


def test_who_floods_one_neighbours_bucket_leaves_the_others(network):
    network.add("a", ["b"])
    network.add("b", (), ["a", "c"])
    for _ in range(5000):
        network.inject("c", "b", b"noise")
    network.run(INTERVAL)
    assert network.rounds[0][3:] == (ASKED + 1, 0)
    assert network.rejected["b", "c", "malformed"] < 300


def test_perftest_is_asked_for_inside_the_round_one_test_at_a_time(network):
    network.add("a", ["b"], rdma=True)
    network.add("b", (), ["a"], rdma=True)
    network.run(8.0)
    assert network.runs == [("b", "server", "a"), ("a", "client", "b")]
    hello = RING.seal(Message(Kind.HELLO, 1, b"n" * 16), "b", "a")
    network.inject("b", "a", hello)
    network.run(0.1)
    assert network.kinds("a")[Kind.BUSY] == 1, "a test is running"
    network.probers["a"].perftest_ended("client")
    network.probers["b"].perftest_ended("server")
    network.inject("b", "a", hello)
    network.run(0.1)
    assert network.kinds("a")[Kind.WELCOME] == 1
    network.run(INTERVAL)
    assert len(network.runs) == 4


def test_a_test_whose_end_is_never_told_ends_by_itself(network):
    network.add("a", ["b"], rdma=True)
    network.add("b", (), ["a"], rdma=True)
    network.run(4 * INTERVAL)
    assert len(network.rounds) == 4
    assert len(network.runs) == 8


@pytest.mark.parametrize(
    ("both", "starts", "reason"),
    [(False, True, "peer_refused"), (True, False, "peer_refused"), (True, None, "no_answer")],
    ids=["not configured there", "cannot start", "exporter silent"],
)
def test_a_peer_without_perftest_costs_the_rdma_figure_only(network, both, starts, reason):
    network.starts = starts
    network.add("a", ["b"], rdma=True)
    network.add("b", (), ["a"], rdma=both)
    network.run(15.0)
    assert network.skipped == [("a", "b", "rdma", reason)]
    assert ("a", "client", "b") not in network.runs
    assert [found[3:] for found in network.rounds] == [(ASKED + 1, 0)]


def test_rdma_cannot_be_asked_for_outside_a_round(network):
    network.add("b", (), ["a"], rdma=True)
    for answered in (b"\0" * 16, b"guessed nonce 16"):
        network.inject("a", "b", RING.seal(Message(Kind.RDMA, 1, b"n" * 16, answered), "a", "b"))
    network.run(1.0)
    assert not network.runs
    assert not network.sent
    assert network.rejected == {("b", "a", "replayed"): 2}
