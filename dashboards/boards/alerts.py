"""The table of what fires, which several pages have."""

from kit.board import fired
from kit.names import Scope
from kit.parts import ACT, WATCH, Placed
from kit.tables import Column, listing

# Longer than anything fires: what is added to the age of what can wait.
_LATER = 1e9
_MOST = 100


def firing(scope: Scope, *labels: tuple[str, str], width: int, link: str = "", counted: bool = False) -> Placed:
    """`labels`: title and label of the columns that say where. `counted`: with how many things are in one row."""
    by = ", ".join(("alertname", "severity", *(label for _, label in labels)))
    both = fired(scope, "~page|ticket")
    age = f"(time() - max by ({by}) ({scope('ALERTS_FOR_STATE')} and ignoring (alertstate) {both}))"
    ticket = f"max by ({by}) ({fired(scope, 'ticket')})"
    return listing(
        "What is wrong",
        (
            Column("Alert", label="alertname"),
            Column("Severity", label="severity", width=90, states={"page": ("page", ACT), "ticket": ("ticket", WATCH)}),
            *(
                Column(title, label=label, width=130 if title == "Host" else 90, link=link if title == "Host" else "")
                for title, label in labels
            ),
            *((Column("How many", f"count by ({by}) ({both})", width=100),) if counted else ()),
            Column("For", age, unit="s", decimals=0, width=90),
            Column("Order", f"{age} + {_LATER:.0f} * {ticket} or {age}", hidden=True),
        ),
        why="Alerts that fire: what pages first, then the newest; 100 rows at most. page: someone must look now. "
        "ticket: within days. Their runbooks say what to do.",
        sort="Order",
        descending=False,
        empty="No alert fires: good. Or Prometheus does not load alerts/rules",
        width=width,
        most=_MOST,
    )
