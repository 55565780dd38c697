"""Fleet: is anything wrong, what does it cost, and who wastes most. Reads what is recorded per host."""

from kit.board import FLEET, TO_HOST, Board, Section, fired
from kit.panels import answer, bars, timeline
from kit.parts import ACT, GOOD, PLAIN, WATCH, Line, at_least, below
from kit.tables import Column, listing

from boards.accounts import WORK, WORK_FIRST, accounts_over_time
from boards.alerts import firing
from boards.fabric import used

F = FLEET
_NO_HOST = "No gpuhost-exporter has been scraped in this time"
_LEDGER = "Needs the ledger on the hosts: --collector.ledger"
_RULES = "Nothing is recorded: Prometheus does not load alerts/rules"
_COST = "fleet:gpuhost_cost_dollars_per_hour:sum_rate5m"
_HOST_COST = "host:gpuhost_cost_dollars_per_hour:rate5m"
# As the alert GpuhostExporterDown knows them: a host that is down is still a target.
_UP = F("up", job="~.*gpuhost.*")
_ON_HOST = "on (cluster, job, instance)"
_DAY = "last_over_time({}[10m])"  # recorded every 4 minutes

BOARD = Board(
    uid="gpuhost-fleet",
    title="gpuhost / Fleet",
    description="All hosts: what is wrong, what they cost, who wastes most.",
    of_one_host=False,
    sections=(
        Section(
            (
                answer(
                    "Paging now",
                    f"count(count by (cluster, job, instance) ({fired(F, 'page')}))"
                    f" or 0 * count({F('gpuhost_exporter_build_info')})",
                    why="Hosts with an alert that pages. Good is 0; the table below says which and why.",
                    steps=((None, PLAIN), (0, GOOD), (1, ACT)),
                    empty=_NO_HOST,
                    width=3,
                ),
                answer(
                    "Hosts",
                    f"count({_UP})",
                    why="Hosts that Prometheus scrapes or tries to: targets of jobs with gpuhost in their name. Good "
                    "is as many as there are.",
                    empty=_NO_HOST,
                    width=3,
                ),
                answer(
                    "Hosts that tell",
                    f"sum({_UP}) / count({_UP})",
                    why="Of those, the hosts whose exporter answers. Good is 100 %: one that does not for 10 minutes "
                    "pages as GpuhostExporterDown.",
                    unit="percentunit",
                    decimals=1,
                    steps=below(0.9999),
                    empty=_NO_HOST,
                    width=4,
                ),
                answer(
                    "GPUs that answer",
                    f"(sum({F('gpuhost_gpu_up')}) or vector(0)) / sum(last_over_time({F('gpuhost_gpus_expected')}[6h])"
                    f" and {_ON_HOST} {_UP})",
                    why="Of the GPUs that the hosts should have, those of hosts that died within 6 hours too. Good is "
                    "100 %.",
                    unit="percentunit",
                    decimals=1,
                    steps=below(0.9999),
                    empty=_NO_HOST,
                    width=4,
                ),
                answer(
                    "Costs an hour",
                    f"sum({F(_COST)})",
                    why="All GPUs of all hosts at their prices, whether they work or not.",
                    unit="currencyUSD",
                    decimals=0,
                    empty=_LEDGER,
                    width=4,
                ),
                answer(
                    "Of it lost",
                    f"sum({F(_COST, account=f'!~{WORK}')}) / sum({F(_COST)})",
                    why="Share of that which goes to anything but computing and communicating, over 5 minutes. Good "
                    "training loses a few percent; GPUs that nobody has taken count here.",
                    unit="percentunit",
                    decimals=1,
                    empty=_LEDGER,
                    width=3,
                ),
                answer(
                    "At risk",
                    f"sum({F('fleet:gpuhost_at_risk_dollars:sum')})",
                    why="What GPUs in use have cost since their job's last checkpoint: lost if all jobs died now.",
                    unit="currencyUSD",
                    decimals=0,
                    empty="No checkpoint seen yet",
                    width=3,
                ),
            ),
            height=4,
        ),
        Section(
            (
                firing(F, ("Host", "instance"), ("Cluster", "cluster"), width=14, link=TO_HOST, counted=True),
                accounts_over_time(
                    "Where the money goes",
                    (f"sum by (account) ({F(_COST, account=accounts)}) > 0" for accounts in WORK_FIRST),
                    why="Dollars an hour by account. The height is the price of the fleet; what is neither green nor "
                    "blue is paid for nothing.",
                    dollars=True,
                    empty=_LEDGER,
                    width=10,
                ),
            ),
            height=10,
        ),
        Section(
            (
                listing(
                    "Who wastes most",
                    (
                        Column("Host", label="instance", link=TO_HOST, width=140),
                        Column("Cluster", label="cluster", width=90),
                        Column(
                            "Lost an hour",
                            f"topk(30, sum by (cluster, instance) ({F(_HOST_COST, account=f'!~{WORK}')}))",
                            unit="currencyUSD",
                            decimals=2,
                        ),
                        Column("Most of it to", label="account", width=120),
                        Column(
                            "That alone",
                            f"topk by (cluster, instance) (1, sum by (cluster, instance, account)"
                            f" ({F(_HOST_COST, account=f'!~{WORK}')}))",
                            unit="currencyUSD",
                            decimals=2,
                        ),
                        Column(
                            "Kept busy",
                            f"max by (cluster, instance) ({F('host:gpuhost_utilization:avg5m')})",
                            unit="percentunit",
                            decimals=0,
                            bar=(0, 1),
                        ),
                        Column(
                            "NVLink usable",
                            f"min by (cluster, instance) ({F('host:gpuhost_nvlink_usable:min_ratio')})",
                            unit="percentunit",
                            decimals=1,
                            steps=below(0.999),
                        ),
                        Column(
                            "Checkpoint limit",
                            f"max by (cluster, instance) ({F('host:gpuhost_checkpoint_share:ratio_increase1h')}"
                            f" / {_ON_HOST} {F('gpuhost_target_checkpoint_share_ratio')})",
                            unit="percentunit",
                            decimals=0,
                            steps=((None, PLAIN), (1, ACT)),
                        ),
                        Column(
                            "At risk",
                            f"max by (cluster, instance) ({F('host:gpuhost_at_risk_dollars:sum')})",
                            unit="currencyUSD",
                            decimals=2,
                        ),
                    ),
                    why="The 30 hosts that lose most dollars an hour now, over 5 minutes, and to what. "
                    "Checkpoint limit: used of it, 100 % is 10 minutes of the last hour. Click a host.",
                    sort="Lost an hour",
                    most=30,
                    empty=_LEDGER,
                    width=24,
                ),
            ),
            height=11,
        ),
        Section(
            (
                timeline(
                    "How busy the hosts are",
                    tuple(
                        Line(f"quantile({share}, {F('host:gpuhost_utilization:avg5m')})", name, colour=colour)
                        for share, name, colour in (
                            (0.95, "95 % are below", "light-blue"),
                            (0.5, "half are below", "blue"),
                            (0.05, "5 % are below", "purple"),
                        )
                    ),
                    why="Utilization of hosts, averaged over 5 minutes and all their GPUs. Lines close together and "
                    "high are good; a wide gap is a fleet where some hosts stand.",
                    unit="percentunit",
                    most=1,
                    empty=_RULES,
                    width=6,
                ),
                bars(
                    "Hosts by how busy they are",
                    tuple(
                        Line(
                            f"count({F('host:gpuhost_utilization:avg5m')} >= {low} < {high})"
                            f" or 0 * count({F('host:gpuhost_utilization:avg5m')})",
                            name,
                        )
                        for low, high, name in (
                            (0.9, 2, "90 % and more"),
                            (0.6, 0.9, "60 to 90 %"),
                            (0.1, 0.6, "10 to 60 %"),
                            (-1, 0.1, "under 10 %"),
                        )
                    ),
                    why="How many hosts are how busy. Metal that trains belongs in the first row; the guide says that "
                    "dedicated hardware is worth its price above 60 % on average.",
                    unit="short",
                    most=None,
                    decimals=0,
                    steps=((None, "blue"),),
                    empty=_RULES,
                    width=6,
                ),
                bars(
                    "Hosts below target",
                    (
                        Line(
                            f"count({F('host:gpuhost_nvlink_usable:min_ratio')} < 0.999)"
                            f" or 0 * count({F('gpuhost_exporter_build_info')})",
                            "NVLink",
                        ),
                        Line(
                            f"count(count by (cluster, instance) ({F('gpuhost_array_up')} == 0))"
                            f" or 0 * count({F('gpuhost_exporter_build_info')})",
                            "Array down",
                        ),
                        Line(
                            f"count(count by (cluster, instance) ({used(F, 'gpuhost_rdma_port_up')} == 0))"
                            f" or 0 * count({F('gpuhost_exporter_build_info')})",
                            "RDMA port down",
                        ),
                        Line(
                            f"count({F('host:gpuhost_checkpoint_share:ratio_increase1h')} > on (cluster, job, instance)"
                            f" {F('gpuhost_target_checkpoint_share_ratio')})"
                            f" or 0 * count({F('gpuhost_exporter_build_info')})",
                            "Checkpoints",
                        ),
                        Line(
                            f"count(count by (cluster, instance) ({F('gpuhost_gpu_hang_seconds')} > 0))"
                            f" or 0 * count({F('gpuhost_exporter_build_info')})",
                            "Job hangs",
                        ),
                    ),
                    why="How many hosts miss which target now. Good is 0 everywhere.",
                    unit="short",
                    most=None,
                    decimals=0,
                    steps=((None, GOOD), (1, WATCH)),
                    empty=_NO_HOST,
                    width=6,
                ),
                bars(
                    "What a day costs",
                    (
                        Line(
                            "topk(7, "
                            + at_least(
                                "sum by (account) (" + _DAY.format(F("fleet:gpuhost_cost_dollars:sum1d")) + ")",
                                f"sum by (account) ({F('host:gpuhost_cost_dollars:increase1h')})",
                            )
                            + " > 0)",
                            "{{account}}",
                        ),
                    ),
                    why="Dollars of the last day, or of as much of it as is known, by the accounts that took most. "
                    "Good is compute far ahead.",
                    unit="currencyUSD",
                    most=None,
                    decimals=0,
                    steps=((None, "blue"),),
                    empty="Not recorded",
                    width=6,
                ),
            ),
            height=8,
        ),
    ),
)
