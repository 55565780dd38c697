"""The accounts that a GPU's time is booked to."""

from __future__ import annotations

from typing import Literal

# Which part of a stretch of time an account may take: all of it, the share with work on the GPU, or the rest.
Part = Literal["all", "busy", "idle"]

# In order of precedence: each part goes to the first account that claims it. Of `busy` and `held_idle` one always does.
PRECEDENCE: tuple[tuple[str, Part], ...] = (
    ("lost", "all"),
    ("unknown", "all"),
    ("unallocated", "idle"),
    ("checkpoint", "idle"),
    ("checkpoint", "busy"),  # siblings that spin while they wait for it
    ("restore", "idle"),
    ("restore", "busy"),
    ("startup", "idle"),
    ("startup", "busy"),
    ("data", "idle"),
    ("host", "idle"),
    ("held_idle", "idle"),
    ("waiting", "busy"),
    ("communication", "busy"),
    ("compute", "busy"),
    ("busy", "busy"),
)
ACCOUNTS = (*dict.fromkeys(account for account, _ in PRECEDENCE), "throttled")
STATES = frozenset(account for account, part in PRECEDENCE if part == "all")
# What is taken off for heat and power brakes comes from these.
COMPUTING = frozenset({"compute", "busy"})
# What neither work nor an empty GPU explains: what `report` calls lost to something.
LOSSES = ("checkpoint", "waiting", "data", "host", "held_idle", "restore", "startup", "throttled", "lost", "unknown")
