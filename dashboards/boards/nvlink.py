"""NVLink: what the GPUs of a host can have of it, what they use, and which link is at fault."""

from kit.board import HOST, Board, Section
from kit.panels import answer, states, timeline
from kit.parts import ACT, GOOD, PLAIN, WATCH, Line, below
from kit.tables import Column, listing, matrix

H = HOST
_NONE = "No GPU of this host has NVLink, or the driver cannot be read"

BOARD = Board(
    uid="gpuhost-nvlink",
    title="gpuhost / NVLink",
    description="Usable and achieved NVLink bandwidth of a host against what its GPUs should have, link by link.",
    sections=(
        Section(
            (
                answer(
                    "Usable, worst GPU",
                    H("host:gpuhost_nvlink_usable:min_ratio"),
                    why="Of the NVLink bandwidth that the product has, what a program can use on the GPU that has "
                    "least. Good is 100 %. A link down costs 5.6 %; 0 % means that NCCL falls back to PCIe.",
                    unit="percentunit",
                    decimals=1,
                    steps=below(0.999),
                    empty=_NONE,
                    width=4,
                ),
                answer(
                    "Links active",
                    f"sum({H('gpuhost_nvlink_links_active')}) / sum({H('gpuhost_nvlink_links_expected')})",
                    why="Links that are trained, of those that should be. Good is 100 %: trained links without a "
                    "registered fabric are of no use, so look at Usable too.",
                    unit="percentunit",
                    decimals=1,
                    steps=below(0.999),
                    empty=_NONE,
                    width=4,
                ),
                answer(
                    "Pairs on PCIe",
                    f"sum({H('gpuhost_nvlink_fallback_peers')}) / 2",
                    why="Pairs of GPUs that should reach each other over NVLink and go over PCIe. Good is 0.",
                    steps=((None, GOOD), (1, ACT)),
                    empty=_NONE,
                    width=4,
                ),
                answer(
                    "PCIe is slower by",
                    f"max({H('gpuhost_nvlink_fallback_slowdown')})",
                    why="How many times less bandwidth a pair has that falls back to PCIe, by this host's links. "
                    "The guide says that collectives become 10 to 14 times slower.",
                    unit="suffix: x",
                    decimals=1,
                    empty=_NONE,
                    width=4,
                ),
                answer(
                    "Achieved, all GPUs",
                    f"sum({H('gpu:gpuhost_nvlink_bytes:rate5m')}) / sum("
                    f"{H('gpuhost_target_nvlink_bandwidth_bytes_per_second')})",
                    why="Traffic over the last 5 minutes as a share of what the links are built for. What is good "
                    "depends on the job: an all-reduce test reaches 80 %, training mostly 10 to 30 %.",
                    unit="percentunit",
                    decimals=1,
                    empty=_NONE,
                    width=4,
                ),
                answer(
                    "Link errors in 1 h",
                    f"sum({H('gpu:gpuhost_nvlink_errors:increase1h')})",
                    why="Replays, recoveries, CRC and ECC errors on all links. Good is 0; recoveries cost bandwidth.",
                    decimals=0,
                    steps=((None, GOOD), (1, WATCH)),
                    empty=_NONE,
                    width=4,
                ),
            ),
            height=4,
        ),
        Section(
            (
                matrix(
                    "Links of each GPU",
                    f"max by (gpu, link) ({H('gpuhost_nvlink_up')})",
                    row="gpu",
                    column="link",
                    corner="GPU",
                    shown={"1": ("up", "semi-dark-green"), "0": ("down", ACT)},
                    why="Every NVLink now. Good is up everywhere. A link that is down on one GPU only is a cable, "
                    "board or switch port; one that is down on all is the switch.",
                    empty=_NONE,
                    column_width=58,
                ),
            ),
            height=10,
        ),
        Section(
            (
                listing(
                    "GPUs",
                    (
                        Column("GPU", label="gpu", width=60),
                        Column(
                            "Usable",
                            f"max by (gpu) ({H('gpuhost_nvlink_usable_bytes_per_second')})",
                            unit="Bps",
                        ),
                        Column(
                            "Target",
                            f"max by (gpu) ({H('gpuhost_target_nvlink_bandwidth_bytes_per_second')})",
                            unit="Bps",
                        ),
                        Column(
                            "Of target",
                            f"max by (gpu) ({H('gpu:gpuhost_nvlink_usable:ratio')})",
                            unit="percentunit",
                            decimals=1,
                            steps=below(0.999),
                        ),
                        Column(
                            "Achieved",
                            f"max by (gpu) ({H('gpu:gpuhost_nvlink_bytes:rate5m')})",
                            unit="Bps",
                        ),
                        Column(
                            "Peers on PCIe",
                            f"max by (gpu) ({H('gpuhost_nvlink_fallback_peers')})",
                            steps=((None, GOOD), (1, ACT)),
                        ),
                        Column(
                            "Errors in 1 h",
                            f"sum by (gpu) ({H('gpu:gpuhost_nvlink_errors:increase1h')})",
                            decimals=0,
                            steps=((None, PLAIN), (1, WATCH)),
                        ),
                    ),
                    why="Per GPU, both directions added up: an H100 SXM has 18 links x 25 GB/s x 2 = 900 GB/s. "
                    "Achieved: over 5 minutes.",
                    sort="GPU",
                    descending=False,
                    empty=_NONE,
                    width=14,
                ),
                states(
                    "Registered with the fabric",
                    Line(
                        f"max by (gpu) ({H('gpuhost_gpu_fabric_state', state='completed')})"
                        f" * 2 + max by (gpu) ({H('gpuhost_gpu_fabric_state', state='in_progress')})",
                        "GPU {{gpu}}",
                    ),
                    why="On hosts with NVSwitches. Good is completed: before that CUDA does not start. Else look at "
                    "the fabric manager.",
                    shown={"2": ("completed", GOOD), "1": ("in progress", WATCH), "0": ("not started", ACT)},
                    empty="No NVSwitch fabric on this host, or its state cannot be read",
                    width=10,
                ),
            ),
            height=11,
        ),
        Section(
            (
                timeline(
                    "Achieved and usable",
                    (
                        Line(
                            f"sum by (gpu) (rate({H('gpuhost_gpu_nvlink_bytes_total')}[$__rate_interval]))",
                            "GPU {{gpu}}",
                        ),
                        Line(
                            f"min({H('gpuhost_nvlink_usable_bytes_per_second')})",
                            "usable, worst GPU",
                            dashed=True,
                            colour=WATCH,
                        ),
                        Line(
                            f"max({H('gpuhost_target_nvlink_bandwidth_bytes_per_second')})",
                            "target",
                            dashed=True,
                        ),
                    ),
                    why="Payload bytes a second of each GPU, sent and received together, below what it can have. GPUs "
                    "of one job should lie on top of each other.",
                    unit="Bps",
                    empty=_NONE,
                    width=12,
                ),
                timeline(
                    "Usable",
                    (
                        Line(
                            f"max by (gpu) ({H('gpuhost_nvlink_usable_bytes_per_second')})",
                            "GPU {{gpu}}",
                        ),
                        Line(
                            f"max({H('gpuhost_target_nvlink_bandwidth_bytes_per_second')})",
                            "target",
                            dashed=True,
                        ),
                    ),
                    why="What a program can have on each GPU. Good lies on the target. A step down is a link that was "
                    "lost; 0 is a fabric that is not ready or a peer that is reached over PCIe only.",
                    unit="Bps",
                    empty=_NONE,
                    width=12,
                ),
            ),
            title="Traffic",
        ),
        Section(
            (
                timeline(
                    "Errors by type",
                    (
                        Line(
                            "60 * sum by (gpu, type)"
                            f" (rate({H('gpuhost_gpu_nvlink_errors_total')}[$__rate_interval])) > 0",
                            "GPU {{gpu}}: {{type}}",
                        ),
                    ),
                    unit="suffix: /min",
                    sparse=True,
                    why="Errors a minute. Good is none. A steady rate of replays is a marginal link; "
                    "recoveries retrain it.",
                    empty="No NVLink errors in this time: good",
                ),
                timeline(
                    "Links not active",
                    (
                        Line(
                            f"{H('gpuhost_nvlink_links_expected')} - {H('gpuhost_nvlink_links_active')}",
                            "GPU {{gpu}}",
                        ),
                    ),
                    why="Links missing on each GPU. Good is 0; a line that goes up and down is a flapping link.",
                    unit="suffix: links",
                    decimals=0,
                    empty=_NONE,
                ),
                timeline(
                    "NVSwitch errors (SXid)",
                    (
                        Line(
                            f"60 * sum by (sxid, fatal) (rate({H('gpuhost_sxid_errors_total')}[$__rate_interval])) > 0",
                            "SXid {{sxid}}, fatal: {{fatal}}",
                        ),
                    ),
                    unit="suffix: /min",
                    sparse=True,
                    why="Errors a minute, from the kernel log. Good is none that is fatal.",
                    empty="No SXid errors in this time: good",
                ),
            ),
            height=7,
            title="Errors",
        ),
    ),
)
