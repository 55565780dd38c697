"""The table of what fires, which several pages have."""

from kit.names import Scope
from kit.parts import ACT, WATCH, Placed
from kit.tables import Column, listing


def firing(scope: Scope, *labels: tuple[str, str], width: int, link: str = "", counted: bool = False) -> Placed:
    """`labels`: title and label of the columns that say where. `counted`: with how many things are in one row."""
    by = ", ".join(("alertname", "severity", *(label for _, label in labels)))
    fired = scope("ALERTS", alertstate="firing", severity="~page|ticket")
    return listing(
        "What is wrong",
        (
            Column("Alert", label="alertname"),
            Column("Severity", label="severity", width=90, states={"page": ("page", ACT), "ticket": ("ticket", WATCH)}),
            *(
                Column(title, label=label, width=130 if title == "Host" else 90, link=link if title == "Host" else "")
                for title, label in labels
            ),
            *((Column("How many", f"count by ({by}) ({fired})", width=100),) if counted else ()),
            Column(
                "For",
                f"time() - max by ({by}) ({scope('ALERTS_FOR_STATE')} and ignoring (alertstate) {fired})",
                unit="s",
                decimals=0,
                width=90,
            ),
        ),
        why="Alerts that fire, newest first. page: someone must look now. ticket: within days. Their runbooks say what "
        "to do.",
        sort="For",
        descending=False,
        empty="No alert fires: good. Or Prometheus does not load alerts/rules",
        width=width,
    )
