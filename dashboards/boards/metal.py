"""Bare metal or VM: what this host is, by which evidence, and whether the guide says that it should be."""

from kit.board import FLEET, HOST, Board, Section
from kit.panels import answer, bars, timeline, words
from kit.parts import GOOD, PLAIN, WATCH, Line
from kit.tables import Column, listing

H = HOST
_NO_HOST = "This host has not been scraped in this time"
_NOT_RECORDED = "Not recorded: no alerts/rules"
_RULE = {"1": ("yes", GOOD), "0": ("no", PLAIN)}


def _recorded(selector: str) -> str:
    """The latest value of what is recorded every 4 minutes only."""
    return f"last_over_time({selector}[10m])"


_ENDPOINTS = _recorded(FLEET("endpoint:gpuhost_worth_dedicated:bool"))

BOARD = Board(
    uid="gpuhost-metal",
    title="gpuhost / Bare metal or VM",
    description="What kind of machine this host is, what that costs, and when dedicated hardware is worth it.",
    period="now-6h",
    sections=(
        Section(
            (
                answer(
                    "This host is",
                    f"max({H('gpuhost_virtualized')})",
                    why="By the evidence below. Good is bare metal where bare metal is paid for.",
                    states={"0": ("bare metal", GOOD), "1": ("virtual", WATCH)},
                    empty=_NO_HOST,
                    width=6,
                ),
                answer(
                    "Hypervisor",
                    H("gpuhost_virtualized"),
                    why="What runs below this machine, as it tells.",
                    legend="{{hypervisor}}",
                    empty=_NO_HOST,
                    width=3,
                ),
                answer(
                    "Kept busy, in use",
                    H("host:gpuhost_utilization_in_use:avg5m"),
                    why="Utilization of the GPUs that a process holds, over 5 minutes. The bands: 90 to 97 % on "
                    "metal, 65 to 85 % on a virtual machine.",
                    unit="percentunit",
                    decimals=0,
                    empty="No process holds a GPU",
                    width=3,
                ),
                answer(
                    "Good begins at",
                    H("gpuhost_expected_utilization_ratio", bound="low"),
                    why="Lower end of what a well-run training job reaches on this kind of machine.",
                    unit="percentunit",
                    decimals=0,
                    empty=_NO_HOST,
                    width=3,
                ),
                answer(
                    "Stolen",
                    f"rate({H('gpuhost_cpu_steal_seconds_total')}[5m])"
                    f" / on (cluster, job, instance) {H('gpuhost_machine_processors')}",
                    why="Share of processor time that a hypervisor gave to others while this machine wanted it. On "
                    "metal it is always 0; any more proves a virtual machine.",
                    unit="percentunit",
                    decimals=2,
                    steps=((None, PLAIN), (0, GOOD), (0.0001, WATCH)),
                    empty="The contention collector is off",
                    width=3,
                ),
                answer(
                    "IOMMU",
                    f"{H('gpuhost_iommu_mode')} == 1",
                    why="How the IOMMU treats the GPUs' DMA. On metal good is off or passthrough; translated costs "
                    "bandwidth.",
                    legend="{{mode}}",
                    empty="Not known",
                    width=6,
                ),
            ),
            height=4,
        ),
        Section(
            (
                timeline(
                    "Utilization against both bands",
                    (
                        Line(H("host:gpuhost_utilization_in_use:avg5m"), "this host, GPUs in use", colour="blue"),
                        *(
                            Line(
                                H("gpuhost_target_utilization_ratio", platform=platform, bound=bound),
                                f"{name}, {bound}",
                                dashed=True,
                                colour=colour,
                            )
                            for platform, name, colour in (("metal", "metal", GOOD), ("vm", "VM", WATCH))
                            for bound in ("low", "high")
                        ),
                    ),
                    why="What well-run training reaches: between the green lines on metal, between the orange ones on "
                    "a virtual machine. A job of 100 GPU-hours on metal takes 125 to 145 on a good VM.",
                    unit="percentunit",
                    most=1,
                    empty="No process held a GPU in this time",
                    width=14,
                ),
                listing(
                    "Evidence",
                    (
                        Column("Source", label="source", width=130),
                        Column("Finding", label="finding"),
                        Column(
                            "Speaks for",
                            f"max by (source, finding) ({H('gpuhost_virtualization_evidence')})",
                            states={"1": ("virtual", WATCH), "0": ("metal", GOOD)},
                            width=100,
                        ),
                    ),
                    why="What each source says. cpuid weighs most; dmi alone proves nothing in a cloud.",
                    empty=_NO_HOST,
                    width=10,
                ),
            ),
            height=11,
        ),
        Section(
            (
                answer(
                    "Above 60 % on average",
                    _recorded(H("host:gpuhost_worth_dedicated:bool", rule="utilization")),
                    why="The guide's rule: an average utilization above 60 %, here over 30 days or as known, "
                    "is worth dedicated hardware.",
                    states=_RULE,
                    empty=_NOT_RECORDED,
                    width=5,
                ),
                answer(
                    "Average of 30 days",
                    _recorded(H("host:gpuhost_utilization:avg30d")),
                    why="The figure behind that rule. Above 60 % dedicated hardware is worth its price.",
                    unit="percentunit",
                    decimals=0,
                    empty=_NOT_RECORDED,
                    width=5,
                ),
                answer(
                    "Several GPUs over NVLink",
                    _recorded(H("host:gpuhost_worth_dedicated:bool", rule="multi_gpu_nvlink")),
                    why="The guide's rule: work on several GPUs over NVLink is worth dedicated hardware.",
                    states=_RULE,
                    empty=_NOT_RECORDED,
                    width=5,
                ),
                answer(
                    "A run over 4 GPU-hours",
                    f"max({H('gpuhost_target_dedicated_gpu_seconds')}) < bool sum(increase("
                    f"{H('gpuhost_gpu_time_seconds_total', account='!~unallocated|lost|unknown')}[1d]))",
                    why="The guide's rule: a training run of more than 4 GPU-hours is worth dedicated hardware. Here: "
                    "GPU time that jobs held on this host in a day; the Job page judges a job by all its hosts.",
                    states=_RULE,
                    empty="Needs the ledger: --collector.ledger",
                    width=5,
                ),
                answer(
                    "Busy inference endpoints",
                    f"count({_ENDPOINTS} == 1) or 0 * count({_ENDPOINTS})",
                    why="The guide's rule: an inference endpoint above 10 requests a second is worth dedicated "
                    "hardware. Here: how many of the cluster's are, by the counters of vLLM and Triton over 5 minutes.",
                    decimals=0,
                    empty="No vLLM or Triton is scraped",
                    width=4,
                ),
            ),
            height=4,
            title="The guide's rules of thumb for dedicated hardware",
        ),
        Section(
            (
                words(
                    "| | bare metal | virtual machine |\n"
                    "|---|---|---|\n"
                    "| utilization of a well-run training job | 90 to 97 % | 65 to 85 % |\n"
                    "| a job of 100 GPU-hours takes | 100 | 125 to 145, poor 150 and more |\n"
                    "| between GPUs | direct NVLink | passthrough or SR-IOV, often PCIe |\n"
                    "| DMA | IOMMU off or passthrough | nested translation |\n"
                    "| neighbours | none: single tenant | steal time, noisy neighbours |\n"
                    "| starting takes | 2 to 5 minutes | 30 to 90 s |\n"
                    "| steady training costs | about 40 % less | |\n",
                    title="What the guide says",
                    width=12,
                ),
                bars(
                    "Waiting for a processor",
                    tuple(
                        Line(
                            f"histogram_quantile({share}, sum by (le)"
                            f" (rate({H('gpuhost_cpu_run_queue_delay_seconds_bucket')}[$__range])))",
                            name,
                        )
                        for share, name in (
                            (0.5, "half are below"),
                            (0.99, "99 % are below"),
                            (0.999, "99.9 % are below"),
                        )
                    ),
                    why="How long a thread that is due waits for a processor, over the time at the top. Good is below "
                    "0.1 ms nearly always: it is what every rank of a collective meets.",
                    unit="s",
                    most=None,
                    steps=((None, "blue"),),
                    empty="The contention collector is off",
                    width=12,
                ),
            ),
            height=9,
        ),
        Section(
            (
                listing(
                    "GPUs and their nearest RDMA adapter",
                    (
                        Column("GPU", label="gpu", width=60),
                        Column("Adapter", label="device", width=110),
                        Column("Between them", label="path", width=130),
                        Column("NUMA node", label="numa_node", width=100),
                        Column(
                            "Known",
                            f"max by (gpu, device, path, numa_node) ({H('gpuhost_gpu_rdma_affinity_info')}"
                            " * on (cluster, job, instance, gpu, uuid) group_left (numa_node)"
                            f" {H('gpuhost_gpu_pcie_info')})",
                            hidden=True,
                        ),
                    ),
                    why="Good is switch: one PCIe switch between GPU and adapter. system crosses between processors.",
                    sort="GPU",
                    descending=False,
                    empty="No RDMA adapter, or the PCI tree is hidden, as in most virtual machines",
                    width=10,
                ),
                bars(
                    "PCIe switch ports with ACS redirect",
                    (Line(f"sum by (acs) ({H('gpuhost_pci_switch_ports')})", "{{acs}}"),),
                    why="Ports above GPUs and adapters by whether ACS sends peer-to-peer traffic through the CPU. On "
                    "metal good is none enabled; virtual machines need it.",
                    unit="short",
                    most=None,
                    steps=((None, "blue"),),
                    decimals=0,
                    empty="No PCIe switch above a GPU or adapter",
                    width=7,
                ),
                bars(
                    "Processor governors",
                    (Line(f"sum by (governor) ({H('gpuhost_cpu_governor_policies')})", "{{governor}}"),),
                    why="Frequency policies by their governor. Good is performance alone.",
                    unit="short",
                    most=None,
                    steps=((None, "blue"),),
                    decimals=0,
                    empty="The kernel does not scale frequencies, as in most virtual machines",
                    width=7,
                ),
            ),
            height=11,
            title="How it is set up",
        ),
    ),
)
