"""The table of who held jobs up, which two pages have."""

from kit.board import TO_HOST
from kit.names import Scope
from kit.parts import Placed
from kit.tables import Column, listing


def culprits(scope: Scope, by: str, width: int, only: str = "") -> Placed:
    """`by`: labels that tell GPUs apart; `only` narrows the GPUs."""
    culprit = "gpuhost_gpu_culprit_info"
    not_joined = (
        f"({scope('gpuhost_gpu_hang_seconds')} > 0) * on (cluster, job, instance, gpu, uuid)"
        f" group_right () {scope(culprit, kind='not_joined')}{only}"
    )
    straggler = f"{scope(culprit, kind='straggler')}{only}"
    host = (
        (Column("Host", label="instance", link=TO_HOST, width=110), Column("Cluster", label="cluster", width=90))
        if "instance" in by
        else ()
    )
    return listing(
        "Who held it up",
        (
            *host,
            Column("GPU", label="gpu", width=60),
            Column("Kind", label="kind", width=100),
            Column("Evidence", label="evidence"),
            Column("XID", label="xid", width=60),
            Column(
                "Lasted",
                f"max by ({by}, kind, evidence, xid) (max_over_time(({not_joined})[$__range:1m])"
                f" or 60 * count_over_time(({straggler})[$__range:1m]))",
                unit="s",
                decimals=0,
            ),
        ),
        why="GPUs that held their job up in the time at the top of the page. not_joined: the siblings hung in a "
        "collective that this one did not join; XID: its last error, if that came before. straggler: they waited for "
        "it for half a minute. Lasted: the longest hang, or the minutes as straggler. Good is nobody.",
        sort="Lasted",
        most=8,
        empty="Nobody held a job up in this time: good. Or the hosts run without the ledger",
        width=width,
    )
