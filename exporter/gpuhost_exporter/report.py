"""`report`: where the GPUs' time went, from the hourly buckets in the state directory. Needs no running exporter."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from gpuhost_exporter import figures
from gpuhost_exporter.clock import Clock
from gpuhost_exporter.errors import ConfigError
from gpuhost_exporter.ledger.accounts import ACCOUNTS
from gpuhost_exporter.ledger.cost import Spent, per_gpu, together
from gpuhost_exporter.ledger.hours import HOUR, buckets
from gpuhost_exporter.sources.state import State
from gpuhost_exporter.table import table

LONGEST = 35 * 86400.0
_USEFUL = ("compute", "busy", "communication")


def report(state: State, clock: Clock, seconds: float, *, as_json: bool) -> int:
    """Print it. 1 when nothing was booked in that time. Raises ConfigError where the folder may not be read."""
    until = clock.wall()
    since = (until - seconds) // HOUR * HOUR
    gpus = per_gpu(buckets(state, since, until))
    if not gpus and (why := state.unreadable()):
        raise ConfigError(f"--storage.path: {why}")
    if as_json:
        document = {
            "since": since,
            "until": until,
            "gpus": [_document(spent) for spent in gpus],
            "all": _document(together(gpus)),
        }
        print(json.dumps(document, indent=1))
    elif gpus:
        print(_page(gpus, since), end="")
    else:
        print("nothing was booked in that time: the exporter has not run, or --storage.path is another folder")
    return 0 if gpus else 1


def _document(spent: Spent) -> dict[str, Any]:
    return {
        "gpu": spent.gpu,
        "uuid": spent.uuid,
        "name": spent.name,
        "booked_seconds": round(spent.booked, 3),
        "lost_seconds": round(spent.lost, 3),
        "lost_dollars": round(spent.dollars_lost, 4),
        "seconds": {name: round(spent.seconds[name], 3) for name in ACCOUNTS if name in spent.seconds},
        "dollars": {name: round(spent.dollars[name], 4) for name in ACCOUNTS if name in spent.dollars},
    }


def _page(gpus: tuple[Spent, ...], since: float) -> str:
    start = datetime.fromtimestamp(since, timezone.utc).strftime("%Y-%m-%d %H:00 UTC")
    rows = [_row(spent) for spent in (*gpus, together(gpus))]
    text = f"GPU time since {start}\n" + table(("GPU", "booked", "worked", "lost", "dollars", "most of it to"), rows)
    for spent in gpus:
        if spent.most:
            account, seconds, dollars = spent.most
            text += f"GPU {spent.gpu} lost {figures.seconds(seconds)} to {account}, ${dollars:.2f}\n"
    return text


def _row(spent: Spent) -> tuple[str, ...]:
    worked = sum(spent.seconds.get(account, 0.0) for account in _USEFUL)
    most = ", ".join(f"{account} {figures.seconds(spent.seconds[account])}" for account in spent.losses[:3])
    return (
        spent.gpu,
        figures.seconds(spent.booked),
        figures.percent(worked / spent.booked),
        figures.seconds(spent.lost),
        f"{spent.dollars_lost:.2f}",
        most or figures.NOTHING,
    )
