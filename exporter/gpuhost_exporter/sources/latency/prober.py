"""One host's side of the probing: it asks its targets and answers its neighbours. It opens nothing: see Hooks.

    asker                    answerer
    HELLO   nonce A     ->
                        <-   WELCOME nonces A, B   or BUSY
    PING 1, 2, ...      ->                         one at a time, the first few to warm up
                        <-   PONG 1, 2, ...
    RDMA                ->                         where the asker has it: start perftest's server
                        <-   READY or REFUSED

A host is in one round at a time, its own or a neighbour's, so that rounds do not measure each other. What a neighbour
may send is bounded by a bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from gpuhost_exporter.sources.latency.message import NO_NONCE, NONCE_BYTES, Keyring, Kind, Message, Rejected
from gpuhost_exporter.sources.latency.plan import PERFTEST_SECONDS, WARM_UP, Plan
from gpuhost_exporter.sources.latency.results import RDMA, TCP

_HELLOS = 3
_GIVE_UP = 5  # messages lost one after the other: the peer is down
_TRIES = 3  # while the peer, or this host, is busy
_SERVING_SECONDS = 1.0  # since the last question: then the neighbour's round is over
_FIRST_SECONDS = 5.0
_QUESTIONS: Mapping[Kind, frozenset[Kind]] = {
    Kind.HELLO: frozenset({Kind.WELCOME, Kind.BUSY}),
    Kind.PING: frozenset({Kind.PONG}),
    Kind.RDMA: frozenset({Kind.READY, Kind.REFUSED}),
}
# Yields the moment until which it waits; is sent the answer and its moment, or None when the time is up.
_Steps = Generator[float, "_Answer | None", None]
_Exchange = Generator[float, "_Answer | None", "_Answer | None"]
_Answer = tuple[Message, float]


@dataclass(frozen=True, slots=True)
class Hooks:
    """The prober's surroundings.

    `now`: seconds of a clock that nobody sets. `send`: to a neighbour; the moment at which it was sent. `random`: so
    many bytes. `run`: have the exporter start perftest, "server" or "client", for a peer. `finished`: a round's peer,
    seconds, messages sent and lost. `skipped`: peer, transport, reason. `rejected`: peer, reason.
    """

    now: Callable[[], float]
    send: Callable[[str, bytes], float]
    random: Callable[[int], bytes]
    run: Callable[[str, str], None]
    finished: Callable[[str, tuple[float, ...], int, int], None]
    skipped: Callable[[str, str, str], None]
    rejected: Callable[[str, str], None]


@dataclass(slots=True)
class _Asking:
    """The round in which this host asks."""

    peer: str
    asked: bytes
    answered: bytes = NO_NONCE
    question: Kind | None = None  # that waits for its answer
    sequence: int = 0
    sent_at: float = 0.0
    until: float = 0.0
    seconds: list[float] = field(default_factory=list)
    lost: int = 0
    late: set[int] = field(default_factory=set)  # lost ones, whose answers may still come, once


@dataclass(slots=True)
class _Neighbour:
    """What is kept of a host that may ask: its bucket, and the nonces of its round, `offered` from the HELLO to the
    first PING, then `serving`. A HELLO that somebody sends once more ends no round that is under way.
    """

    tokens: float
    filled_at: float
    offered: tuple[bytes, bytes] | None = None
    serving: tuple[bytes, bytes] | None = None
    last: int = 0
    heard_at: float = float("-inf")


@dataclass(slots=True)
class _Target:
    slot: float  # the regular moment of its next round
    due: float
    tries: int = 0


class Prober:
    """Call `received` for each datagram and `tick` when the moment comes that it returned. `keys` may be changed."""

    def __init__(self, plan: Plan, keys: Keyring, hooks: Hooks) -> None:
        self.keys = keys
        self._plan = plan
        self._hooks = hooks
        self._asking: _Asking | None = None
        self._steps: _Steps | None = None
        self._previous: _Asking | None = None  # its answers may be on their way still
        self._server: str | None = None  # the peer for whom perftest's server runs here, or is to
        self._server_ready = False
        self._server_until = 0.0
        now = hooks.now()
        # Twice what this host's round and the neighbour's bring in an interval.
        self._capacity = 4.0 * (plan.messages + WARM_UP + 2 * _HELLOS)
        self._neighbours = {name: _Neighbour(self._capacity, now) for name in plan.neighbours}
        self._targets = {}
        for name in plan.targets:
            first = now + self._share() * min(_FIRST_SECONDS, plan.interval)
            self._targets[name] = _Target(first, first)

    def may_read(self, peer: str) -> bool:
        """Whether the peer's bucket has a datagram left. Who goes on sending is left to the kernel's buffer."""
        neighbour, now = self._neighbours[peer], self._hooks.now()
        tokens = neighbour.tokens + (now - neighbour.filled_at) * self._capacity / self._plan.interval
        neighbour.tokens, neighbour.filled_at = min(self._capacity, tokens), now
        return neighbour.tokens >= 1.0

    def received(self, peer: str, datagram: bytes, at: float) -> None:
        """A datagram came from that peer's address at that moment."""
        neighbour = self._neighbours[peer]
        neighbour.tokens -= 1.0
        if neighbour.tokens < 1.0:
            self._hooks.rejected(peer, "rate")
        try:
            message = self.keys.open(datagram, peer, self._plan.name)
            if message.kind in _QUESTIONS:
                self._question(peer, neighbour, message, at)
            else:
                self._answer(peer, message, at)
        except Rejected as rejected:
            self._hooks.rejected(peer, rejected.reason)

    def tick(self) -> float:
        """Do what is due. Returns the moment of the next thing to do, if no datagram comes before."""
        now = self._hooks.now()
        if self._server and now >= self._server_until:
            self._server = None
        while self._asking and self._asking.until <= now:
            self._resume(None)
        if self._asking is None:
            for peer, target in self._targets.items():
                if target.due <= now:
                    if self._serving(now):
                        self._put_off(peer, "busy_here")
                    else:
                        self._begin(peer)
                        break
        if self._asking:
            return self._asking.until
        return min((target.due for target in self._targets.values()), default=now + self._plan.interval)

    def server_started(self, peer: str, *, started: bool) -> None:
        """The exporter's answer to `run("server", peer)`."""
        neighbour = self._neighbours[peer]
        self._server_ready = started
        if not started:
            self._server = None
        if neighbour.serving:
            self._send(peer, Kind.READY if started else Kind.REFUSED, neighbour.last, *neighbour.serving)

    def perftest_ended(self, role: str) -> None:
        """perftest has ended, well or not, which the exporter knows."""
        if role == "server":
            self._server = None
        elif self._asking and self._asking.question is None:
            self._resume(None)

    # Asking.

    def _begin(self, peer: str) -> None:
        self._asking = _Asking(peer, self._hooks.random(NONCE_BYTES))
        self._steps = self._round(self._asking)
        self._resume(None)

    def _resume(self, answer: _Answer | None) -> None:
        assert self._asking
        assert self._steps
        try:
            self._asking.until = self._steps.send(answer)
        except StopIteration:
            self._previous, self._asking, self._steps = self._asking, None, None

    def _round(self, asking: _Asking) -> _Steps:
        greeted = None
        for _ in range(_HELLOS):
            greeted = yield from self._exchange(asking, Kind.HELLO)
            if greeted:
                break
        if greeted and greeted[0].kind is Kind.BUSY:
            self._put_off(asking.peer, "peer_busy")
            return
        self._next_slot(asking.peer)
        alive = False
        if greeted:
            asking.answered = greeted[0].answered
            alive = yield from self._messages(asking)
        self._hooks.finished(asking.peer, tuple(asking.seconds), asking.sequence, asking.lost)
        if alive and self._plan.rdma:
            yield from self._rdma(asking)

    def _messages(self, asking: _Asking) -> Generator[float, _Answer | None, bool]:
        """Returns whether the peer still answered at the end."""
        in_a_row = 0
        for number in range(WARM_UP + self._plan.messages):
            answer = yield from self._exchange(asking, Kind.PING)
            if answer is None:
                in_a_row += 1
                if in_a_row == _GIVE_UP:
                    return False
                continue
            in_a_row = 0
            if number >= WARM_UP:
                asking.seconds.append(answer[1] - asking.sent_at)
            yield asking.sent_at + self._plan.gap
        return True

    def _rdma(self, asking: _Asking) -> _Steps:
        for _ in range(_HELLOS):
            answer = yield from self._exchange(asking, Kind.RDMA)
            if answer:
                break
        if answer is None or answer[0].kind is Kind.REFUSED:
            self._hooks.skipped(asking.peer, RDMA, "peer_refused" if answer else "no_answer")
            return
        self._hooks.run("client", asking.peer)
        yield self._hooks.now() + PERFTEST_SECONDS

    def _exchange(self, asking: _Asking, question: Kind) -> _Exchange:
        asking.sequence += 1
        asking.question = question
        asking.sent_at = self._send(asking.peer, question, asking.sequence, asking.asked, asking.answered)
        answer = yield asking.sent_at + self._plan.patience
        asking.question = None
        if answer is None:
            asking.lost += 1
            asking.late.add(asking.sequence)
        return answer

    def _answer(self, peer: str, message: Message, at: float) -> None:
        for known in (self._asking, self._previous):
            if known and (peer, message.asked) == (known.peer, known.asked) and message.sequence in known.late:
                known.late.discard(message.sequence)
                return
        asking = self._asking
        if asking is None or (peer, message.asked) != (asking.peer, asking.asked):
            raise Rejected("replayed")
        fits = asking.question is Kind.HELLO or message.answered == asking.answered
        if asking.question is None or message.kind not in _QUESTIONS[asking.question] or not fits:
            raise Rejected("replayed")
        if message.sequence != asking.sequence:
            raise Rejected("replayed")
        self._resume((message, at))

    def _put_off(self, peer: str, reason: str) -> None:
        """Try again in a while, each host in its own; after some tries, the next regular time."""
        target = self._targets[peer]
        target.tries += 1
        if target.tries < _TRIES:
            target.due = self._hooks.now() + 1.0 + 2.0 * self._share()
        else:
            self._hooks.skipped(peer, TCP, reason)
            self._next_slot(peer)

    def _next_slot(self, peer: str) -> None:
        target, now = self._targets[peer], self._hooks.now()
        missed = max(0.0, (now - target.slot) // self._plan.interval)
        target.slot += (missed + 1) * self._plan.interval
        target.due, target.tries = target.slot, 0

    def _share(self) -> float:
        """A random number from 0 to 1."""
        return int.from_bytes(self._hooks.random(4), "big") / 2**32

    # Answering.

    def _question(self, peer: str, neighbour: _Neighbour, message: Message, at: float) -> None:
        if message.kind is Kind.HELLO:
            self._greet(peer, neighbour, message, at)
            return
        nonces = (message.asked, message.answered)
        if nonces == neighbour.offered:
            neighbour.serving, neighbour.offered, neighbour.last = nonces, None, 0
        if nonces != neighbour.serving or message.sequence <= neighbour.last:
            raise Rejected("replayed")
        neighbour.last, neighbour.heard_at = message.sequence, at
        if message.kind is Kind.PING:
            self._send(peer, Kind.PONG, message.sequence, *nonces)
        elif self._server is None and self._plan.rdma:
            self._server, self._server_ready, self._server_until = peer, False, at + PERFTEST_SECONDS
            self._hooks.run("server", peer)
        elif self._server != peer or self._server_ready:
            ready = self._server == peer
            self._send(peer, Kind.READY if ready else Kind.REFUSED, message.sequence, *nonces)

    def _greet(self, peer: str, neighbour: _Neighbour, message: Message, at: float) -> None:
        if self._asking or self._serving(at, peer):
            self._send(peer, Kind.BUSY, message.sequence, message.asked, NO_NONCE)
            return
        if neighbour.offered is None or neighbour.offered[0] != message.asked:
            neighbour.offered = message.asked, self._hooks.random(NONCE_BYTES)
        self._send(peer, Kind.WELCOME, message.sequence, *neighbour.offered)

    def _serving(self, now: float, other_than: str = "") -> bool:
        """Whether a neighbour's round, or the test that came of it, is under way here."""
        return self._server is not None or any(
            now - neighbour.heard_at < _SERVING_SECONDS
            for name, neighbour in self._neighbours.items()
            if name != other_than
        )

    def _send(self, peer: str, kind: Kind, sequence: int, asked: bytes, answered: bytes) -> float:
        message = Message(kind, sequence, asked, answered)
        return self._hooks.send(peer, self.keys.seal(message, self._plan.name, peer))
