"""The ledger's accounts and phases: their colours and words, the same on every page."""

from collections.abc import Iterable

from kit.names import Scope
from kit.panels import timeline
from kit.parts import ACT, Line, Placed

# Work is green and blue, what costs time warm, what nobody uses grey; red is broken.
ACCOUNTS = {
    "compute": "green",
    "busy": "dark-green",
    "communication": "blue",
    "waiting": "dark-purple",
    "checkpoint": "yellow",
    "data": "orange",
    "host": "#8d6e4f",
    "held_idle": "super-light-purple",
    "startup": "super-light-blue",
    "restore": "light-blue",
    "throttled": "dark-yellow",
    "unallocated": "#8e8e8e",
    "unknown": "#5a5a5a",
    "lost": "red",
}
WORK = "compute|busy|communication"
WORK_FIRST = (f"~{WORK}", f"!~{WORK}")  # matchers of `account`, from the bottom of a stack up

PHASE_NAMES = (
    ("computing", "compute", "green"),
    ("communicating", "exchange", "blue"),
    ("waiting", "wait", "dark-purple"),
    ("checkpointing", "save", "yellow"),
    ("idle", "idle", "super-light-purple"),
    ("unallocated", "free", "#8e8e8e"),
    ("lost", "lost", ACT),
    ("unknown", "unknown", "#5a5a5a"),
)
PHASES = {str(number): (text, colour) for number, (_, text, colour) in enumerate(PHASE_NAMES, 1)}


def accounts_over_time(
    title: str, expressions: Iterable[str], *, why: str, empty: str, dollars: bool = False, width: int = 12
) -> Placed:
    """What the accounts take, on top of each other: shares of the time, or dollars an hour."""
    return timeline(
        title,
        tuple(Line(expression, "{{account}}") for expression in expressions),
        why=why,
        unit="currencyUSD" if dollars else "percentunit",
        most=None if dollars else 1,
        stacked=True,
        colours=ACCOUNTS,
        table_legend=True,
        decimals=2 if dollars else 1,
        empty=empty,
        width=width,
    )


def phase_of(scope: Scope, by: str = "gpu", only: str = "") -> str:
    """A number for each GPU's phase, which PHASES puts in words; `only` narrows the GPUs."""
    numbered = []
    for number, (phase, _, _) in enumerate(PHASE_NAMES, 1):
        numbered.append(f"{number} * ({scope('gpuhost_gpu_phase', phase=phase)} == 1)")
    return f"max by ({by}) (({' or '.join(numbered)}){only})"
