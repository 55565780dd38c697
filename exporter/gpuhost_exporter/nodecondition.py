"""`node-condition`: the exporter's verdict as a condition of its Kubernetes node, slowly and never on too many.

The condition GPUHostUnfit is True while the host is unfit, as node-problem-detector's are: True is the problem. It
drains nothing itself; what acts on conditions does. Told once so many verdicts in a row agree; held back where more
nodes than the configured share would be unfit, which is decided by one node at a time (a lease). An unfit node that
nobody vouches for any longer stays True: it is no better for that, and its place in the share is not free.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

from gpuhost_exporter import health
from gpuhost_exporter.arguments import positive_seconds, text
from gpuhost_exporter.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from gpuhost_exporter.kubernetes import Cluster

log = logging.getLogger(__name__)

KIND = "GPUHostUnfit"
_HEARTBEAT_ROUNDS = 10  # an API server with thousands of nodes need not hear the same twice a minute
_STATUS = {"fit": "False", "unfit": "True", "unknown": "Unknown"}
_REASON = {"fit": "NothingDrains", "unfit": "FindingDrains", "unknown": "NotVouchedFor"}


@dataclass(frozen=True, slots=True)
class Condition:
    """`status`: True, False or Unknown, as Kubernetes writes them."""

    kind: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Rules:
    """`after`: verdicts in a row before one is told. `share`: of the nodes that `selector` finds, 0 to 1."""

    after: dict[str, int]
    share: float
    selector: str


class Steady:
    """The verdict that has held for long enough; None until one has."""

    def __init__(self, after: dict[str, int]) -> None:
        self._after = after
        self._last = ""
        self._times = 0
        self.word: str | None = None

    def see(self, word: str) -> None:
        self._times = self._times + 1 if word == self._last else 1
        self._last = word
        if self._times >= self._after[word]:
            self.word = word


class Watch:
    """One node's. `cluster` is None in a dry run, which only says what it would do."""

    def __init__(self, node: str, rules: Rules, cluster: Cluster | None, ask: Callable[[], tuple[str, str]]) -> None:
        self._node = node
        self._rules = rules
        self._cluster = cluster
        self._ask = ask
        self._steady = Steady(rules.after)
        self._told: str | None = None
        self._quiet = 0  # rounds since the API was told anything

    def round(self) -> None:
        """Ask once; tell what has become steady. What fails is logged and tried again in the next round."""
        word, reason = self._ask()
        self._steady.see(word)
        if self._steady.word != word:
            return  # not for long enough yet: what was told stays
        condition = Condition(KIND, _STATUS[word], _REASON[word], reason[:1024])
        changed = self._told != word
        self._quiet += 1
        if not changed and self._quiet < _HEARTBEAT_ROUNDS:
            return
        if self._cluster is None:
            if changed:
                log.info("dry run: %s of %s would be %s: %s", KIND, self._node, condition.status, reason)
            self._told = word
            return
        try:
            if word == "unfit" and changed:
                told = self._tell_within_share(self._cluster, condition)
            else:
                if word == "unknown" and self._cluster.status(self._node, KIND) == "True":
                    message = f"unfit when last vouched for; since then: {reason}"[:1024]
                    condition, changes = replace(condition, status="True", message=message), False
                else:
                    changes = changed
                self._cluster.set_condition(self._node, condition, changed=changes)
                told = True
        except SourceError as error:
            log.warning("%s", error)
            return
        if told:
            if changed:
                log.info("%s of %s is %s: %s", KIND, self._node, condition.status, reason)
            self._told, self._quiet = word, 0

    def _tell_within_share(self, cluster: Cluster, condition: Condition) -> bool:
        """One node at a time counts and tells; else two would both be the last one allowed."""
        lease = cluster.take_lease(self._node)
        if lease is None:
            log.info("another node is about to be told unfit; next round")
            return False
        try:
            statuses = cluster.statuses(KIND, self._rules.selector)
            before = statuses.pop(self._node, None)
            if before is None:
                log.warning("%s is not among the nodes that %r selects: held back", self._node, self._rules.selector)
                return False
            most = math.floor(self._rules.share * (len(statuses) + 1))
            unfit = sum(status == "True" for status in statuses.values())
            if before != "True" and unfit + 1 > most:
                log.warning(
                    "held back: %d of %d nodes are unfit and %d may be; this one: %s",
                    unfit,
                    len(statuses) + 1,
                    most,
                    condition.message,
                )
                return False
            cluster.set_condition(self._node, condition, changed=before != "True")
            return True
        finally:
            cluster.give_lease_back(lease)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    health.add_arguments(parser)
    parser.add_argument("--apply", action="store_true", help="do it; without, it only says what it would do")
    parser.add_argument("--node", type=text, help="this node's name (default $NODE_NAME)")
    parser.add_argument("--interval", default="30s", metavar="DURATION", help="between verdicts (default 30s)")
    parser.add_argument("--unfit-after", type=_count, default=3, metavar="N", help="verdicts in a row (default 3)")
    parser.add_argument("--fit-after", type=_count, default=10, metavar="N", help="verdicts in a row (default 10)")
    parser.add_argument(
        "--most-unfit", type=_share, default=0.1, metavar="SHARE", help="of the nodes, rounded down (default 0.1)"
    )
    parser.add_argument(
        "--selector", default="nvidia.com/gpu.present=true", help="the nodes that count (default %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Until a signal ends it. Raises ConfigError."""
    node = options.node or os.environ.get("NODE_NAME")
    if not node:
        raise ConfigError("which node is this? --node NAME or $NODE_NAME")
    exporter = health.exporter(options)
    timeout, interval = positive_seconds(options.timeout), positive_seconds(options.interval)
    after = {"fit": options.fit_after, "unfit": options.unfit_after, "unknown": options.unfit_after}
    cluster = None
    if options.apply:
        from gpuhost_exporter.kubernetes import Cluster

        cluster = Cluster.from_environment(os.environ)
    rules = Rules(after, options.most_unfit, options.selector)
    watch = Watch(node, rules, cluster, lambda: health.ask(exporter, timeout))
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    while not stop.is_set():
        watch.round()
        stop.wait(interval)
    return 0


def _count(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 1000:
        raise argparse.ArgumentTypeError(f"expected a count from 1 to 1000, got {value!r}")
    return int(value)


def _share(value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and up to 1, got {value!r}")
    return share
