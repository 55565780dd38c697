"""Host: one screen of every target against actual, then the GPUs in detail."""

from kit.board import HOST, Board, Section, fired
from kit.panels import answer, bars, states, timeline
from kit.parts import ACT, FINE, GOOD, PLAIN, WATCH, Line, below
from kit.tables import Column, listing

from boards.accounts import PHASES, phase_of
from boards.alerts import firing
from boards.storage import DELIVERED, OF_TARGET
from boards.verify import measured

H = HOST
_NO_HOST = "This host has not been scraped in this time"
_NO_GPM = "Needs GPM: Hopper and later, and profiling not kept to administrators"
_NO_GPU = "No GPU on this host, or the driver cannot be read: see Exporter"
_GOOD_BAND = (
    f"on (cluster, job, instance, device, direction) {H('gpuhost_storage_target_bytes_per_second', band='good')}"
)

BOARD = Board(
    uid="gpuhost-host",
    title="gpuhost / Host",
    description="One host: what it delivers of what it should, and each of its GPUs.",
    checkpoints=True,
    sections=(
        Section(
            (
                answer(
                    "Paging now",
                    f"count({fired(H, 'page')}) or 0 * max({H('gpuhost_exporter_build_info')})",
                    why="Alerts that page, firing on this host. Good is 0; the table beside says which.",
                    steps=((None, PLAIN), (0, GOOD), (1, ACT)),
                    empty=_NO_HOST,
                    width=4,
                ),
                answer(
                    "GPUs that answer",
                    f"sum({H('gpuhost_gpu_up')}) / max({H('gpuhost_gpus_expected')})",
                    why="Of the GPUs that this host should have. Good is 100 %.",
                    unit="percentunit",
                    decimals=0,
                    steps=below(1),
                    empty=_NO_GPU,
                    width=4,
                ),
                answer(
                    "Kept busy",
                    H("host:gpuhost_utilization_in_use:avg5m"),
                    why="Share of the last 5 minutes with work on the GPUs that a process holds. On metal a well-run "
                    "training job holds 90 to 97 %. A hung collective is busy too: look at tensor activity.",
                    unit="percentunit",
                    decimals=0,
                    empty="No process holds a GPU",
                    width=4,
                ),
                answer(
                    "Costs an hour",
                    f"sum({H('gpuhost_price_dollars_per_gpu_hour')})",
                    why="Price of all GPUs of this host for an hour, whether they work or not.",
                    unit="currencyUSD",
                    decimals=2,
                    empty="Needs the ledger: --collector.ledger",
                    width=4,
                ),
                answer(
                    "Of it lost",
                    f"sum({H('host:gpuhost_cost_dollars_per_hour:rate5m', account='!~compute|busy|communication')})",
                    why="Dollars an hour that go to anything but computing and communicating, over 5 minutes. GPU "
                    "time says to what.",
                    unit="currencyUSD",
                    decimals=2,
                    empty="Needs the ledger: --collector.ledger",
                    width=4,
                ),
                answer(
                    "At risk",
                    H("host:gpuhost_at_risk_dollars:sum"),
                    why="What the GPUs in use have cost since the last checkpoint began: lost if the job dies now.",
                    unit="currencyUSD",
                    decimals=2,
                    empty="No checkpoint seen yet",
                    width=4,
                ),
            ),
            height=4,
        ),
        Section(
            (
                bars(
                    "Target against actual",
                    (
                        Line(H("host:gpuhost_nvlink_usable:min_ratio"), "NVLink usable", steps=below(0.999)),
                        Line(
                            f"min({H('gpuhost_gpu_power_limit_watts')} / {H('gpuhost_target_power_watts')})",
                            "Power allowed",
                        ),
                        Line(
                            f"min({H('gpuhost_gpu_pcie_width_lanes')} / on (cluster, job, instance, gpu, uuid)"
                            f" {H('gpuhost_gpu_pcie_width_max_lanes', part='link')})",
                            "GPU PCIe lanes",
                        ),
                        Line(
                            f"min({H('gpuhost_gpu_pcie_generation')} / on (cluster, job, instance, gpu, uuid)"
                            f" {H('gpuhost_gpu_pcie_generation_max', part='link')}"
                            f" and on (cluster, job, instance, gpu, uuid) {H('gpu:gpuhost_utilization:avg5m')} > 0.5)",
                            "GPU PCIe generation",
                        ),
                        Line(
                            f"min({H(DELIVERED, direction='write')} / {_GOOD_BAND})",
                            "Storage, written",
                            steps=OF_TARGET,
                        ),
                        Line(
                            f"min({H(DELIVERED, direction='read')} / {_GOOD_BAND})",
                            "Storage, read",
                            steps=OF_TARGET,
                        ),
                        Line(
                            f"min({H('gpuhost_rdma_port_rate_bytes_per_second')} / on (cluster, job, instance)"
                            f" group_left () {H('gpuhost_target_roce_port_bytes_per_second')})",
                            "RDMA port rate",
                        ),
                        Line(
                            f"{H('host:gpuhost_utilization_in_use:avg5m')} / on (cluster, job, instance)"
                            f" {H('gpuhost_expected_utilization_ratio', bound='low')}",
                            "Kept busy",
                        ),
                        Line(f"avg({H('gpu:gpuhost_memory_bandwidth:ratio_rate5m')})", "Memory bandwidth", colour=FINE),
                        Line(
                            f"avg({H('gpu:gpuhost_tensor_activity_at_clock:ratio_avg5m')})",
                            "Dense peak",
                            colour=FINE,
                        ),
                    ),
                    why="The worst of each kind as a share of its target: 100 % is good, more is better. Storage is "
                    "judged only while it was asked for more than it gives, in the last hour; kept busy only while "
                    "processes hold GPUs, against the lower end of what this platform should reach; the PCIe "
                    "generation under load only. Red is what pages: NVLink, and storage below half. Blue is no "
                    "judgement: what the GPUs use on average of their memory's bandwidth and of the tensor cores' "
                    "dense peak (activity times clock, not FLOPS); large models show 35 to 55 %.",
                    most=1.2,
                    steps=below(0.995, WATCH),
                    decimals=0,
                    empty=_NO_HOST,
                    width=8,
                ),
                bars(
                    "Limits: used of them",
                    (
                        Line(
                            f"max({H('host:gpuhost_checkpoint_share:ratio_increase1h')} / on (cluster, job, instance)"
                            f" {H('gpuhost_target_checkpoint_share_ratio')})",
                            "Checkpoints",
                            steps=((None, PLAIN), (0, GOOD), (1, ACT)),
                        ),
                        Line(
                            f"max({H('gpuhost_fabric_round_trip_median_seconds', transport='~rdma|mpi')}"
                            f" / on (cluster, job, instance) group_left ()"
                            f" {H('gpuhost_target_collective_latency_seconds')})",
                            "Latency",
                        ),
                    ),
                    why="Less is better, 100 % is the limit. Checkpoints: GPU time lost to them in the last hour, of "
                    "10 minutes. Latency: the worst peer over RDMA or MPI, where hosts to probe are configured.",
                    most=1.2,
                    steps=((None, PLAIN), (0, GOOD), (1, WATCH)),
                    decimals=0,
                    empty="No job held GPUs for a tenth of the last hour, and nobody is probed",
                    width=5,
                ),
                firing(H, ("GPU", "gpu"), ("Device", "device"), width=11),
            ),
            height=11,
        ),
        Section(
            (
                listing(
                    "GPUs",
                    (
                        Column("GPU", label="gpu", width=55),
                        Column(
                            "Answers",
                            f"max by (gpu) ({H('gpuhost_gpu_up')})",
                            states={"1": ("yes", GOOD), "0": ("no", ACT)},
                            width=80,
                        ),
                        Column("Doing", phase_of(H), states=PHASES, width=120),
                        Column(
                            "Busy",
                            f"max by (gpu) ({H('gpuhost_gpu_utilization_ratio')})",
                            unit="percentunit",
                            decimals=0,
                            bar=(0, 1),
                        ),
                        Column(
                            "Tensor active",
                            f"max by (gpu) ({H('gpuhost_gpu_tensor_active_ratio')})",
                            unit="percentunit",
                            decimals=0,
                            bar=(0, 1),
                        ),
                        Column(
                            "HBM",
                            f"max by (gpu) ({H('gpuhost_gpu_memory_bandwidth_ratio')})",
                            unit="percentunit",
                            decimals=0,
                            bar=(0, 1),
                        ),
                        Column(
                            "Memory used",
                            f"max by (gpu) ({H('gpuhost_gpu_memory_used_bytes')}"
                            f" / {H('gpuhost_gpu_memory_total_bytes')})",
                            unit="percentunit",
                            decimals=0,
                        ),
                        Column(
                            "NVLink usable",
                            f"max by (gpu) ({H('gpu:gpuhost_nvlink_usable:ratio')})",
                            unit="percentunit",
                            decimals=1,
                            steps=below(0.999),
                        ),
                        Column("Power", f"max by (gpu) ({H('gpuhost_gpu_power_watts')})", unit="watt", decimals=0),
                        Column(
                            "Until it slows",
                            f"max by (gpu) ({H('gpuhost_gpu_temperature_margin_celsius')})",
                            unit="celsius",
                            decimals=0,
                            steps=((None, PLAIN), (-100, ACT), (1, WATCH), (5, PLAIN)),
                        ),
                        Column(
                            "ECC",
                            f"sum by (gpu) ({H('gpuhost_gpu_ecc_errors_total', type='uncorrected')})",
                            decimals=0,
                        ),
                        Column(
                            "XIDs, 24 h",
                            "sum by (gpu) (increase("
                            f"{H('gpuhost_xid_events_total', severity='critical', gpu='!unknown')}[24h]))",
                            decimals=0,
                        ),
                    ),
                    why="Every GPU now. Within one job all rows should look alike; the one that does not is where to "
                    "look. HBM: memory bandwidth. Until it slows: degrees of temperature left. ECC: uncorrected errors"
                    " since the driver was loaded. XIDs: critical ones. What of these calls for someone now is above.",
                    sort="GPU",
                    descending=False,
                    empty=_NO_GPU,
                ),
            ),
            height=10,
        ),
        Section(
            (
                states(
                    "What each GPU does",
                    Line(phase_of(H), "GPU {{gpu}}"),
                    why="A first look at each GPU, by the ledger. Good training is computing with short checkpoints; "
                    "one GPU that computes while the others wait holds the job up.",
                    shown=PHASES,
                    empty="Needs the ledger: --collector.ledger",
                    width=12,
                ),
                timeline(
                    "Busy",
                    (
                        Line(f"max by (gpu) ({H('gpuhost_gpu_utilization_ratio')})", "GPU {{gpu}}"),
                        Line(
                            f"max by (bound) ({H('gpuhost_expected_utilization_ratio', bound='low')})",
                            "expected",
                            dashed=True,
                        ),
                    ),
                    why="Share of time with work on the GPU. Good training lies above the dashed line, which is "
                    "90 % on metal and 65 % on virtual machines.",
                    unit="percentunit",
                    most=1,
                    empty=_NO_GPU,
                    width=12,
                ),
            ),
            title="GPUs over time",
        ),
        Section(
            (
                timeline(
                    "Tensor cores",
                    (Line(f"max by (gpu) ({H('gpuhost_gpu_tensor_active_ratio')})", "GPU {{gpu}}"),),
                    why="Share of the tensor cores' issue capacity in use. Good training of large models shows 35 to "
                    "55 %; near 0 at full utilization is a hung collective.",
                    unit="percentunit",
                    empty=_NO_GPM,
                    width=6,
                ),
                timeline(
                    "Of the dense peak",
                    (Line(f"max by (gpu) ({H('gpu:gpuhost_tensor_activity_at_clock:ratio_avg5m')})", "GPU {{gpu}}"),),
                    why="Tensor activity times clock, over the clock at which the product's dense peak is stated: "
                    "activity over 5 minutes, not FLOPS. Good training of large models shows 35 to 55 %.",
                    unit="percentunit",
                    most=1,
                    empty=_NO_GPM,
                    width=6,
                ),
                timeline(
                    "Memory bandwidth",
                    (
                        Line(
                            f"max by (gpu) ({H('gpuhost_gpu_memory_bandwidth_bytes_per_second')})",
                            "GPU {{gpu}}",
                        ),
                        Line(
                            f"max({H('gpuhost_target_memory_bandwidth_bytes_per_second')})",
                            "product",
                            dashed=True,
                        ),
                    ),
                    why="Bytes a second to and from GPU memory. Near the dashed line memory is the bottleneck.",
                    unit="Bps",
                    empty=_NO_GPM,
                    width=6,
                ),
                timeline(
                    "Power",
                    (
                        Line(f"max by (gpu) ({H('gpuhost_gpu_power_watts')})", "GPU {{gpu}}"),
                        Line(f"max({H('gpuhost_target_power_watts')})", "product", dashed=True),
                    ),
                    why="Watts drawn. Good training lies near the dashed line; an H100 near 150 W at full "
                    "utilization waits instead of computing.",
                    unit="watt",
                    empty=_NO_GPU,
                    width=6,
                ),
            ),
            height=8,
        ),
        Section(
            (
                timeline(
                    "Degrees until it slows down",
                    (Line(f"max by (gpu) ({H('gpuhost_gpu_temperature_margin_celsius')})", "GPU {{gpu}}"),),
                    why="What is left of temperature before the GPU lowers its clocks. Good is well above 0.",
                    unit="celsius",
                    empty=_NO_GPU,
                ),
                timeline(
                    "Clocks held down",
                    (
                        Line(
                            f"sum by (reason) (rate({H('gpuhost_gpu_throttled_seconds_total')}[$__rate_interval])) > 0",
                            "{{reason}}",
                        ),
                    ),
                    why="GPUs whose clocks are held down, by reason: 8 is all of eight, all of the time. power at "
                    "full load is normal; thermal, board_limit and reliability are not.",
                    unit="suffix: GPUs",
                    sparse=True,
                    empty="No clock was held down in this time: good",
                ),
                timeline(
                    "Tasks waiting",
                    (
                        Line(
                            f"rate({H('gpuhost_pressure_stalled_seconds_total', kind='some')}[$__rate_interval])",
                            "for {{resource}}",
                        ),
                    ),
                    why="Share of time in which at least one task waited for the processor, memory or I/O. Good is "
                    "near 0; io rises in a checkpoint.",
                    unit="percentunit",
                    empty="The kernel has no pressure information (PSI)",
                ),
            ),
            height=7,
        ),
        Section(
            (
                answer(
                    "Against its sisters",
                    f"min({H('device:gpuhost_verify:ratio_sisters')})",
                    why="The worst of what verify measured on this host, over the median of the cluster's machines of "
                    "this product. Good is near 100 %.",
                    unit="percentunit",
                    decimals=0,
                    steps=((None, PLAIN), (0, WATCH), (0.9, GOOD)),
                    empty="Not measured by verify",
                    width=5,
                ),
                measured(H, width=19),
            ),
            height=6,
            title="Acceptance",
        ),
    ),
)
