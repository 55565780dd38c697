"""Job: one job across its hosts. Who holds it up, what it costs, what is lost if it dies now."""

from kit.board import FLEET, TO_HOST, Board, Section, Variable, with_cluster
from kit.panels import answer, bars, timeline
from kit.parts import GOOD, PLAIN, WATCH, Line
from kit.tables import Column, listing, matrix

from boards.accounts import PHASE_NAMES, PHASES, WORK, WORK_FIRST, accounts_over_time, phase_of
from boards.culprits import culprits

F = FLEET
_GPU = "on (cluster, job, instance, gpu, uuid)"
_INFO = F("gpu:gpuhost_work:info", work="$work")
_ONLY = f" and {_GPU} {_INFO}"
_NONE = "The job holds no GPU in this time, or the hosts run without the ledger"
_YOUNG = "The job has not held GPUs for 5 minutes in this time, or the hosts run without the ledger"
_TIME = "job:gpuhost_time:ratio_rate5m"
_COST = "job:gpuhost_cost_dollars_per_hour:sum_rate5m"
_PRICE = F("job:gpuhost_price_dollars_per_hour:sum", work="$work")
_HOSTS = f"on (cluster, job, instance) count by (cluster, job, instance) ({_INFO})"

BOARD = Board(
    uid="gpuhost-job",
    title="gpuhost / Job",
    description="One job across its hosts: phase of each GPU, who waits least, cost so far, dollars at risk.",
    of_one_host=False,
    checkpoints=True,
    only=f"and on (cluster, job, instance) {_INFO}",
    variables=(
        Variable(
            "work",
            "Job",
            F("gpu:gpuhost_work:info"),
            "work",
            "Of Slurm its id, else where the job's ranks meet (the label run of gpuhost_gpu_job_info), which is the "
            "same on all its hosts; what tells no such place by its id (exported_job) and its host.",
        ),
    ),
    sections=(
        Section(
            (
                answer(
                    "GPUs",
                    f"count({_INFO})",
                    why="GPUs that the job holds now, over all hosts. Good is as many as it was given.",
                    empty=_NONE,
                    width=3,
                ),
                answer(
                    "Hosts",
                    f"count(count by (cluster, instance) ({_INFO}))",
                    why="Hosts that the job runs on. Good is as many as it was given.",
                    empty=_NONE,
                    width=3,
                ),
                answer(
                    "Spent working",
                    f"sum(avg by (account) ({F(_TIME, work='$work', account=f'~{WORK}')}))",
                    why="Share of its GPUs' time that went to computing and communicating, over 5 minutes. Good "
                    "training is above 90 % on metal.",
                    unit="percentunit",
                    decimals=1,
                    empty=_YOUNG,
                    width=5,
                ),
                answer(
                    "Costs an hour",
                    f"sum({_PRICE})",
                    why="Price of the GPUs that it holds.",
                    unit="currencyUSD",
                    decimals=2,
                    empty=_NONE,
                    width=5,
                ),
                answer(
                    "At risk",
                    f"sum({F('job:gpuhost_at_risk_dollars:sum', work='$work')})",
                    why="What its GPUs have cost since the last checkpoint: lost if the job dies now.",
                    unit="currencyUSD",
                    decimals=2,
                    empty="No checkpoint seen yet",
                    width=4,
                ),
                answer(
                    "Worth metal",
                    f"max(last_over_time({F('job:gpuhost_worth_dedicated:bool', work='$work')}[10m]))",
                    why="The guide's rule: a training run of more than 4 GPU-hours is worth dedicated hardware.",
                    states={"1": ("yes", GOOD), "0": ("no", PLAIN)},
                    empty="Not recorded",
                    width=4,
                ),
            ),
            height=4,
        ),
        Section(
            (
                answer(
                    "Cost in this time",
                    f"sum(sum_over_time({_PRICE}[$__range:1m])) / 60",
                    why="Price of the GPUs it held, minute by minute, over the time at the top of the page.",
                    unit="currencyUSD",
                    decimals=2,
                    empty=_NONE,
                    width=6,
                ),
                answer(
                    "Cost, 7 d",
                    f"sum(last_over_time({F('job:gpuhost_cost_dollars:sum7d', work='$work')}[10m]))",
                    why="Price of the GPUs it held in 7 days, or in as much of them as is known: all that a younger "
                    "job has cost so far. Jobs other than Slurm's that met at one address and port count as one.",
                    unit="currencyUSD",
                    decimals=2,
                    empty="Not recorded",
                    width=6,
                ),
                answer(
                    "GPU-hours, 7 d",
                    f"sum(last_over_time({F('job:gpuhost_gpu_hours:sum7d', work='$work')}[10m]))",
                    why="GPU-hours that the job has held in 7 days, or in as much of them as is known: the figure "
                    "behind Worth metal.",
                    decimals=0,
                    empty="Not recorded",
                    width=6,
                ),
                answer(
                    "Lost to checkpoints",
                    f"max({F('job:gpuhost_checkpoint_share:ratio_avg1h', work='$work')})",
                    why="Share of its GPUs' time in the last hour, or in as much of it as the job has run, that went "
                    "to checkpoints. Good is a few percent; the limit is 10 minutes of every hour.",
                    unit="percentunit",
                    decimals=1,
                    limit=f"max({F('gpuhost_target_checkpoint_share_ratio')} and {_HOSTS})",
                    empty=_YOUNG,
                    width=6,
                ),
            ),
            height=4,
        ),
        Section(
            (
                matrix(
                    "What each GPU does now",
                    with_cluster(phase_of(F, "cluster, instance, gpu", _ONLY)),
                    row="host",
                    column="gpu",
                    corner="Host",
                    shown=PHASES,
                    why="A first look at each GPU, a row for each host. Good is all of one colour; one that computes "
                    "while the others wait holds the job up.",
                    empty=_NONE,
                    width=13,
                    column_width=68,
                    corner_width=150,
                ),
                timeline(
                    "GPUs by what they do",
                    tuple(
                        Line(
                            f"sum({F('gpuhost_gpu_phase', phase=phase)}{_ONLY}) > 0",
                            shown,
                            colour=colour,
                        )
                        for phase, shown, colour in PHASE_NAMES
                    ),
                    why="How many of the job's GPUs did what. Good training is green to the top with short, narrow "
                    "checkpoints.",
                    unit="suffix: GPUs",
                    stacked=True,
                    decimals=0,
                    empty=_NONE,
                    width=11,
                ),
            ),
            height=11,
        ),
        Section(
            (
                listing(
                    "Who waits least",
                    (
                        Column("Host", label="instance", link=TO_HOST, width=110),
                        Column("Cluster", label="cluster", width=90),
                        Column("GPU", label="gpu", width=60),
                        Column(
                            "Against mean",
                            f"max by (cluster, instance, gpu) ({F('gpu:gpuhost_busy_sm:ratio_job_avg', work='$work')})",
                            unit="percentunit",
                            decimals=1,
                        ),
                        Column(
                            "SM activity",
                            f"max by (cluster, instance, gpu) ({F('gpuhost_gpu_busy_sm_ratio')}{_ONLY})",
                            unit="percentunit",
                            decimals=1,
                            bar=(0, 1),
                        ),
                        Column(
                            "Clock",
                            f"max by (cluster, instance, gpu) ({F('gpuhost_gpu_sm_clock_hertz')}{_ONLY})",
                            unit="hertz",
                        ),
                        Column(
                            "NVLink usable",
                            f"min by (cluster, instance, gpu) ({F('gpu:gpuhost_nvlink_usable:ratio')}{_ONLY})",
                            unit="percentunit",
                            decimals=1,
                        ),
                        Column(
                            "Until it slows",
                            f"min by (cluster, instance, gpu) ({F('gpuhost_gpu_temperature_margin_celsius')}{_ONLY})",
                            unit="celsius",
                            decimals=0,
                        ),
                    ),
                    why="SM activity while the GPU computes, and against the job's mean. In a synchronous job the GPU "
                    "that is busiest waits least: its siblings wait for it. Good is little between first and last. "
                    "Stages of unequal size in a pipeline show the same.",
                    sort="SM activity",
                    most=8,
                    empty="Needs GPM: Hopper and later, and profiling not kept to administrators",
                    width=14,
                ),
                culprits(F, "cluster, instance, gpu", width=10, only=_ONLY),
            ),
            height=10,
        ),
        Section(
            (
                accounts_over_time(
                    "Where its time goes",
                    (f"avg by (account) ({F(_TIME, work='$work', account=accounts)}) > 0" for accounts in WORK_FIRST),
                    why="Shares of its GPUs' time, averaged over 5 minutes. Good is green to the top.",
                    empty=_YOUNG,
                ),
                accounts_over_time(
                    "What it loses",
                    (f"sum by (account) ({F(_COST, work='$work', account=f'!~{WORK}')}) > 0",),
                    why="Dollars an hour that go to anything but computing and communicating.",
                    dollars=True,
                    empty="Nothing was lost in this time: good",
                ),
            ),
            height=12,
        ),
        Section(
            (
                timeline(
                    "Busy",
                    (
                        Line(F("job:gpuhost_utilization:avg5m", work="$work"), "mean of its GPUs"),
                        Line(
                            f"min({F('gpuhost_expected_utilization_ratio', bound='low')} and {_HOSTS})",
                            "what its hosts should reach",
                            dashed=True,
                        ),
                    ),
                    why="Share of the time in which some kernel ran, over 5 minutes. Good is above the dashed line.",
                    unit="percentunit",
                    most=1,
                    empty=_YOUNG,
                ),
                timeline(
                    "Of the peak of its GPUs",
                    (
                        Line(F("job:gpuhost_tensor_activity_at_clock:avg_ratio_avg5m", work="$work"), "tensor cores"),
                        Line(F("job:gpuhost_memory_bandwidth:avg_ratio_rate5m", work="$work"), "memory bandwidth"),
                    ),
                    why="Mean of its GPUs over 5 minutes. Tensor cores: their activity times the clock, of the dense "
                    "peak; not FLOPS. Large models show 35 to 55 %. The higher of the two is what limits the job.",
                    unit="percentunit",
                    most=1,
                    empty="The job has not held GPUs for 5 minutes, or they tell no profiling counters",
                ),
                timeline(
                    "NVLink, of the product's full bandwidth",
                    (
                        Line(F("job:gpuhost_nvlink_usable:min_ratio", work="$work"), "usable, worst GPU"),
                        Line(F("job:gpuhost_nvlink_achieved:avg_ratio_rate5m", work="$work"), "achieved, mean"),
                    ),
                    why="What the worst of its GPUs can have, and what they move on average. Good is usable at 100 %: "
                    "below it every collective of the job is slower.",
                    unit="percentunit",
                    most=1,
                    empty="Its GPUs have no NVLink, or the job holds none in this time",
                ),
            ),
            title="How well it uses its GPUs",
        ),
        Section(
            (
                timeline(
                    "Busy, by host",
                    (
                        Line(
                            f"min by (cluster, instance) ({F('gpuhost_gpu_utilization_ratio')}{_ONLY})",
                            "{{instance}}",
                        ),
                    ),
                    why="The least busy of the job's GPUs on each host. Good is all hosts alike.",
                    unit="percentunit",
                    most=1,
                    empty=_NONE,
                    width=8,
                ),
                timeline(
                    "Lost to checkpoints, by host",
                    (
                        Line(F("job:gpuhost_checkpoint_share:ratio_avg1h", work="$work"), "this job"),
                        Line(
                            "max by (cluster, instance)"
                            f" ({F('host:gpuhost_checkpoint_share:ratio_increase1h')} and {_HOSTS})",
                            "{{instance}}",
                        ),
                        Line(
                            f"max({F('gpuhost_target_checkpoint_share_ratio')} and {_HOSTS})",
                            "10 minutes of every hour",
                            dashed=True,
                            colour=WATCH,
                        ),
                    ),
                    why="Share of the last hour that the job's GPUs stood for checkpoints, and all that work on each "
                    "of its hosts. Good is far below the dashed line.",
                    unit="percentunit",
                    empty="No checkpoint seen yet",
                    width=8,
                ),
                timeline(
                    "Speed of checkpoints, by host",
                    (
                        Line(
                            "min by (cluster, instance)"
                            f" ({F('gpuhost_checkpoint_last_bytes_per_second')} and {_HOSTS})",
                            "{{instance}}",
                        ),
                        Line(
                            f"max({F('gpuhost_target_storage_bytes_per_second', band='good')} and {_HOSTS})",
                            "good",
                            dashed=True,
                            colour=GOOD,
                        ),
                    ),
                    why="Bytes by duration of each host's last checkpoint, the slowest where there are several. The "
                    "slowest host is what the job waits for.",
                    unit="Bps",
                    empty="No checkpoint seen yet",
                    width=8,
                ),
            ),
            title="Its hosts side by side",
        ),
        Section(
            (
                listing(
                    "Its parts",
                    (
                        Column("Host", label="instance", link=TO_HOST),
                        Column("Cluster", label="cluster"),
                        Column("Known there as", label="exported_job"),
                        Column("Name", label="name"),
                        Column("Project", label="project"),
                        Column("GPUs", f"count by (cluster, instance, exported_job, name, project) ({_INFO})"),
                    ),
                    why="The job, pods, containers or units that it is made of. Good is as many, of as many GPUs each, "
                    "as it was given.",
                    sort="Host",
                    descending=False,
                    empty=_NONE,
                    width=14,
                ),
                bars(
                    "Cost of the last day by account",
                    (
                        Line(
                            "sort_desc(sum by (account)"
                            f" (last_over_time({F('job:gpuhost_cost_dollars:sum1d', work='$work')}[10m])) > 0)",
                            "{{account}}",
                        ),
                    ),
                    why="Dollars of 24 hours, most first, of GPUs that it had held for 5 minutes. Good is compute far "
                    "ahead.",
                    unit="currencyUSD",
                    most=None,
                    steps=((None, "blue"),),
                    decimals=2,
                    empty=_YOUNG,
                    width=10,
                ),
            ),
            height=9,
        ),
    ),
)
