"""GPU time: where every GPU-second of a host went, what it cost, and what checkpoints take of it."""

from kit.board import HOST, Board, Section
from kit.panels import answer, bars, states, timeline
from kit.parts import GOOD, WATCH, Line, at_least
from kit.tables import Column, listing

from boards.accounts import PHASES, WORK, WORK_FIRST, accounts_over_time, phase_of
from boards.culprits import culprits

H = HOST
_LEDGER = "Needs the ledger: --collector.ledger"
_NONE_YET = "No checkpoint seen yet"


def _last(name: str) -> str:
    """Of the last checkpoint in the time shown, also when the exporter has been started anew since."""
    return f"max by (mount, mode) (last_over_time({H(name)}[$__range]))"


BOARD = Board(
    uid="gpuhost-time",
    title="gpuhost / GPU time",
    description="The ledger: every GPU-second in one account, in time and money; what checkpoints take of it.",
    checkpoints=True,
    sections=(
        Section(
            (
                answer(
                    "Spent working",
                    f"sum({H('host:gpuhost_held_time:ratio_increase1h', account=f'~{WORK}')})",
                    why="Of the time in which jobs held GPUs in the last hour, the share in which they computed or "
                    "communicated. Good training is above 90 % on metal.",
                    unit="percentunit",
                    decimals=1,
                    empty="No job held GPUs for a tenth of the last hour",
                    width=3,
                ),
                answer(
                    "Lost to checkpoints",
                    f"sum({H('host:gpuhost_checkpoint_share:ratio_increase1h')})",
                    why="Share of the last hour that GPUs stood for checkpoints. Good is a few percent; the guide's "
                    "warning is 10 minutes of every hour: 16.7 %, drawn below.",
                    unit="percentunit",
                    decimals=1,
                    limit=f"max({H('gpuhost_target_checkpoint_share_ratio')})",
                    empty="No job held GPUs for a tenth of the last hour",
                    width=3,
                ),
                answer(
                    "Lost to data",
                    f"sum({H('host:gpuhost_held_time:ratio_increase1h', account='data')})",
                    why="Share of the last hour that GPUs waited for input. Good is near 0.",
                    unit="percentunit",
                    decimals=1,
                    empty="No job held GPUs for a tenth of the last hour",
                    width=3,
                ),
                answer(
                    "Cost of the last hour",
                    f"sum({H('host:gpuhost_cost_dollars:increase1h')})",
                    why="GPU time of the last hour at this host's price.",
                    unit="currencyUSD",
                    decimals=2,
                    empty=_LEDGER,
                    width=4,
                ),
                answer(
                    "Last day",
                    at_least(
                        f"sum(last_over_time({H('host:gpuhost_cost_dollars:sum1d')}[10m]))",
                        f"sum({H('host:gpuhost_cost_dollars:increase1h')})",
                    ),
                    why="Cost of GPU time in the last day, or of as much of it as is known, at this host's price.",
                    unit="currencyUSD",
                    decimals=0,
                    empty="Not recorded",
                    width=3,
                ),
                answer(
                    "Of it lost",
                    f"sum({H('host:gpuhost_cost_dollars:increase1h', account=f'!~{WORK}')})",
                    why="What went to anything but computing and communicating in the last hour.",
                    unit="currencyUSD",
                    decimals=2,
                    empty=_LEDGER,
                    width=4,
                ),
                answer(
                    "At risk",
                    H("host:gpuhost_at_risk_dollars:sum"),
                    why="What the GPUs in use have cost since the last checkpoint began: lost if the job dies now.",
                    unit="currencyUSD",
                    decimals=2,
                    empty=_NONE_YET,
                    width=4,
                ),
            ),
            height=4,
        ),
        Section(
            (
                accounts_over_time(
                    "Where the time goes",
                    (
                        f"sum by (account) ({H('gpu:gpuhost_time:ratio_rate5m', account=accounts)})"
                        " / ignoring (account) group_left () count(count by (gpu)"
                        f" ({H('gpu:gpuhost_time:ratio_rate5m')})) > 0"
                        for accounts in WORK_FIRST
                    ),
                    why="Shares of all GPUs' time, averaged over 5 minutes. Good is green to the top. What an account "
                    "means is in the description of gpuhost_gpu_time_seconds_total.",
                    empty=_LEDGER,
                ),
                accounts_over_time(
                    "Where the money goes",
                    (
                        f"sum by (account) ({H('host:gpuhost_cost_dollars_per_hour:rate5m', account=accounts)}) > 0"
                        for accounts in WORK_FIRST
                    ),
                    why="The same in dollars an hour. The height is the price of the host; what is not green or blue "
                    "is paid for nothing.",
                    dollars=True,
                    empty=_LEDGER,
                ),
            ),
            height=10,
        ),
        Section(
            (
                states(
                    "What each GPU does",
                    Line(phase_of(H), "GPU {{gpu}}"),
                    why="A first look at each GPU. Good training is computing with short checkpoints on all at once; "
                    "one GPU that computes while the others wait holds the job up.",
                    shown=PHASES,
                    empty=_LEDGER,
                    width=14,
                ),
                culprits(H, "gpu", width=10),
            ),
            height=10,
        ),
        Section(
            (
                timeline(
                    "Share lost to checkpoints",
                    (
                        Line(
                            f"sum({H('host:gpuhost_checkpoint_share:ratio_increase1h')})",
                            "last hour",
                            colour="yellow",
                        ),
                        Line(
                            f"max({H('gpuhost_target_checkpoint_share_ratio')})",
                            "10 minutes of every hour",
                            dashed=True,
                            colour=WATCH,
                        ),
                    ),
                    why="Good is far below the dashed line, which is the guide's 16.7 %.",
                    unit="percentunit",
                    decimals=1,
                    empty="No job held GPUs for a tenth of the last hour",
                ),
                timeline(
                    "Speed of the last checkpoint",
                    (
                        Line(
                            f"max by (mount, mode) ({H('gpuhost_checkpoint_last_bytes_per_second')})",
                            "{{mount}} ({{mode}})",
                        ),
                        *(
                            Line(H("gpuhost_target_storage_bytes_per_second", band=band), band, True, colour)
                            for band, colour in (("good", GOOD), ("poor", WATCH))
                        ),
                    ),
                    why="Bytes by duration. Good local storage takes 20 GB/s; below the line poor the job waits for "
                    "storage.",
                    unit="Bps",
                    empty=_NONE_YET,
                ),
                timeline(
                    "GPUs stood for the last one",
                    (
                        Line(
                            f"max by (mount, mode) ({H('gpuhost_checkpoint_last_stall_seconds')})",
                            "{{mount}} ({{mode}})",
                        ),
                        Line(
                            f"max({H('gpuhost_checkpoint_last_bytes')} / on (cluster, job, instance)"
                            f" group_left () {H('gpuhost_target_storage_bytes_per_second', band='good')})",
                            "its bytes on good storage",
                            dashed=True,
                        ),
                    ),
                    why="Seconds for which GPUs did not train. Good is at or below the dashed line, which is what its "
                    "bytes take on storage as it should be; an asynchronous one stands for the copy alone.",
                    unit="s",
                    empty=_NONE_YET,
                ),
            ),
            title="Checkpoints",
        ),
        Section(
            (
                listing(
                    "Last checkpoints",
                    (
                        Column("To", label="mount"),
                        Column("Mode", label="mode", width=80),
                        Column(
                            "Size",
                            _last("gpuhost_checkpoint_last_bytes"),
                            unit="decbytes",
                        ),
                        Column(
                            "Took",
                            _last("gpuhost_checkpoint_last_duration_seconds"),
                            unit="s",
                            decimals=1,
                        ),
                        Column(
                            "GPUs stood",
                            _last("gpuhost_checkpoint_last_stall_seconds"),
                            unit="s",
                            decimals=1,
                        ),
                        Column(
                            "Speed",
                            _last("gpuhost_checkpoint_last_bytes_per_second"),
                            unit="Bps",
                        ),
                        Column(
                            "Every",
                            _last("gpuhost_checkpoint_interval_seconds"),
                            unit="s",
                            decimals=0,
                        ),
                        Column(
                            "Age",
                            "time() - " + _last("gpuhost_checkpoint_last_timestamp_seconds"),
                            unit="s",
                            decimals=0,
                        ),
                    ),
                    why="By where they went and how. A 70B model's checkpoint is 140 GB: under 5 s at 30 GB/s, 7 s at "
                    "20, 14 s at 10.",
                    empty=_NONE_YET,
                    width=14,
                ),
                bars(
                    "Cost of the last hour by account",
                    (
                        Line(
                            f"sort_desc(sum by (account) ({H('host:gpuhost_cost_dollars:increase1h')}) > 0)",
                            "{{account}}",
                        ),
                    ),
                    why="Dollars of the last hour, most first. Good is compute far ahead.",
                    unit="currencyUSD",
                    most=None,
                    steps=((None, "blue"),),
                    decimals=2,
                    empty=_LEDGER,
                    width=10,
                ),
            ),
            height=11,
        ),
    ),
)
