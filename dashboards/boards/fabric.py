"""Fabric: RDMA ports, congestion from sender to receiver, and latency between hosts."""

from kit.board import HOST, Board, Section
from kit.names import Scope
from kit.panels import answer, timeline
from kit.parts import ACT, GOOD, PLAIN, WATCH, Line, below
from kit.tables import Column, listing

H = HOST
_NO_PORT = "No RDMA port on this host, or its collector is off"
_NO_USED_PORT = "No RDMA port on this host is in use, or their collector is off"
_NO_ETHERNET = "No Ethernet RDMA port on this host, or its collector is off"
_NO_PROBE = "No hosts to probe are configured: [latency] in the configuration"
_PORT = "{{device}}"
_FAULTS = "!~request_flushed|response_flushed|.*completion"  # a normal end of a connection counts there
# Of ports that are up: a host has fast ones for its GPUs and slower ones for storage or management, each with a line.
_RATES = f"({H('gpuhost_rdma_port_rate_bytes_per_second')} and {H('gpuhost_rdma_port_up')} == 1)"
_AS_LONG_AS_OTHERS = {
    "ack_timeout": "blue",
    "adaptive_retransmission_timeout": "light-blue",
    "duplicate_request, slow receiver": "#9a9b2f",
    "rnr_nak, slow receiver": "#8d6e4f",
}
_PFC_SHARE = 0.05  # a rule of thumb of RoCE networks, as in gpuhost_rdma_pause_seconds_total's description


_UNUSED = ("unused", PLAIN)


def used(scope: Scope, metric: str) -> str:
    """The metric without ports that nobody has cabled."""
    unused = scope("device:gpuhost_rdma_port_used:bool")
    return f"({scope(metric)} unless on (cluster, job, instance, device, port) {unused} == 0)"


def _events(kinds: str, by: str = "type") -> str:
    return f"sum by ({by}) (rate({H('gpuhost_rdma_congestion_events_total', type=kinds)}[$__rate_interval])) > 0"


def _of_used(metric: str) -> str:
    """-1 for ports that are not in use."""
    return f"max by (device) {used(H, metric)} or max by (device) (0 * {H(metric)} - 1)"


def _line_rates() -> tuple[Line, ...]:
    """A dashed line for each distinct rate, of three at most."""
    fastest = f"max({_RATES})"
    slower = f"max({_RATES} < scalar({fastest}))"
    slowest = f"max({_RATES} < scalar({slower}))"
    return (
        Line(fastest, "line rate", dashed=True),
        Line(slower, "line rate of slower ports", dashed=True),
        Line(slowest, "line rate of the slowest", dashed=True),
    )


BOARD = Board(
    uid="gpuhost-fabric",
    title="gpuhost / Fabric",
    description="The network between hosts as this host sees it: RDMA ports, congestion, errors, latency.",
    sections=(
        Section(
            (
                answer(
                    "Ports up",
                    f"avg({used(H, 'gpuhost_rdma_port_up')})",
                    why="RDMA ports that carry traffic, of those that did in the last two weeks. Good is 100 %; the "
                    "table below says which is down and why.",
                    unit="percentunit",
                    decimals=0,
                    steps=below(1),
                    empty=_NO_USED_PORT,
                ),
                answer(
                    "Slowest port",
                    f"min({H('gpuhost_rdma_port_rate_bytes_per_second')} / on (cluster, job, instance) group_left ()"
                    f" {H('gpuhost_target_roce_port_bytes_per_second')})",
                    why="Negotiated rate of the slowest port as a share of what one should carry. Good is 100 % or "
                    "more: the guide's 100G is 12.5 GB/s; set [target] where ports should do more.",
                    unit="percentunit",
                    decimals=0,
                    steps=below(1, WATCH),
                    empty=_NO_PORT,
                ),
                answer(
                    "Told to pause",
                    f"max(rate({H('gpuhost_rdma_pause_seconds_total')}[5m]))",
                    why="Share of the last 5 minutes in which the network told the worst port to send nothing of a "
                    "priority. Good is under 5 %.",
                    unit="percentunit",
                    decimals=1,
                    steps=((None, PLAIN), (0, GOOD), (_PFC_SHARE, ACT)),
                    empty=_NO_ETHERNET,
                ),
                answer(
                    "Timeouts in 1 h",
                    f"sum(increase({H('gpuhost_rdma_congestion_events_total', type='~ack_timeout|.*_timeout')}[1h]))",
                    why="Packets that were given up waiting for: each stalls a job. Good is 0.",
                    decimals=0,
                    steps=((None, PLAIN), (0, GOOD), (1, ACT)),
                    empty=_NO_PORT,
                ),
                answer(
                    "Latency, worst peer",
                    f"max({H('gpuhost_fabric_round_trip_median_seconds', transport='~rdma|mpi')})"
                    f" / max({H('gpuhost_target_collective_latency_seconds')})",
                    why="Median of the last small messages over RDMA or MPI, as a share of its target of 5 µs. Good "
                    "is under 100 %.",
                    unit="percentunit",
                    decimals=0,
                    steps=((None, PLAIN), (0, GOOD), (1, WATCH)),
                    empty="Not probed over RDMA",
                ),
                answer(
                    "GPUDirect RDMA",
                    f"max({H('gpuhost_gpudirect_rdma_available')})",
                    why="Whether adapters reach GPU memory without a copy through host memory, by nvidia_peermem or "
                    "dma_buf.",
                    states={"1": ("yes", GOOD), "0": ("no", ACT)},
                    empty="Not known",
                ),
            ),
            height=4,
        ),
        Section(
            (
                timeline(
                    "Ports: sent",
                    (
                        Line(f"rate({H('gpuhost_rdma_port_bytes_total', direction='tx')}[$__rate_interval])", _PORT),
                        *_line_rates(),
                    ),
                    why="Bytes a second that each port sends, below its rate: a dashed line for each rate there is. "
                    "Ports of one job's rails should lie on "
                    "top of each other.",
                    unit="Bps",
                    empty=_NO_PORT,
                    width=12,
                ),
                timeline(
                    "Ports: received",
                    (
                        Line(f"rate({H('gpuhost_rdma_port_bytes_total', direction='rx')}[$__rate_interval])", _PORT),
                        *_line_rates(),
                    ),
                    why="Bytes a second that each port receives, below its rate.",
                    unit="Bps",
                    empty=_NO_PORT,
                    width=12,
                ),
            ),
        ),
        Section(
            (
                listing(
                    "Ports",
                    (
                        Column("Port", label="device", width=90),
                        Column(
                            "Up",
                            _of_used("gpuhost_rdma_port_up"),
                            states={"1": ("yes", GOOD), "0": ("no", ACT), "-1": _UNUSED},
                            width=80,
                        ),
                        Column(
                            "Cable",
                            _of_used("gpuhost_rdma_port_physical_up"),
                            states={"1": ("link", GOOD), "0": ("no link", ACT), "-1": _UNUSED},
                            width=80,
                        ),
                        Column(
                            "Rate",
                            f"max by (device) ({H('gpuhost_rdma_port_rate_bytes_per_second')} * 8)",
                            unit="bps",
                            width=110,
                        ),
                        Column(
                            "MTU",
                            f"max by (device) ({H('gpuhost_rdma_port_mtu_bytes')})",
                            unit="none",
                            steps=((None, PLAIN), (0, WATCH), (4200, PLAIN)),
                            width=70,
                        ),
                        Column(
                            "RoCE v2",
                            f"max by (device) ({H('gpuhost_rdma_port_roce_v2')})",
                            states={"1": ("yes", GOOD), "0": ("no", WATCH)},
                            width=80,
                        ),
                        Column(
                            "Errors in 1 h",
                            f"sum by (device) (increase({H('gpuhost_rdma_port_errors_total', type=_FAULTS)}[1h]))",
                            decimals=0,
                            steps=((None, PLAIN), (1, WATCH)),
                        ),
                        Column(
                            "Damaged in 1 h",
                            f"sum by (device) (increase({H('gpuhost_rdma_physical_errors_total')}[1h]))",
                            decimals=0,
                            steps=((None, PLAIN), (1, WATCH)),
                        ),
                        Column(
                            "Timeouts in 1 h",
                            f"sum by (device) (increase("
                            f"{H('gpuhost_rdma_congestion_events_total', type='~ack_timeout|.*_timeout')}[1h]))",
                            decimals=0,
                            steps=((None, PLAIN), (1, ACT)),
                        ),
                        Column(
                            "Dropped in 1 h",
                            f"sum by (device) (increase({H('gpuhost_rdma_physical_discards_total')}[1h]))",
                            decimals=0,
                            steps=((None, PLAIN), (1, WATCH)),
                        ),
                    ),
                    why="Every RDMA port; unused has not been up in two weeks. Cable no link: cable, transceiver or "
                    "the other end. MTU below 4200 leaves RDMA packets of 1024 bytes. Damaged packets are a cable or "
                    "transceiver to exchange; dropped ones have no place in a lossless network.",
                    sort="Port",
                    descending=False,
                    empty=_NO_PORT,
                ),
            ),
            height=11,
        ),
        Section(
            (
                timeline(
                    "1. The network marks (ECN)",
                    (Line(_events("ecn_marked", "device"), "{{device}}"),),
                    why="Packets a second that arrived marked: a switch on the way has a queue. Congestion control at "
                    "work, normal under load.",
                    unit="pps",
                    empty="No packet was marked in this time",
                    width=6,
                ),
                timeline(
                    "2. Senders slow (CNP)",
                    (
                        Line(_events("cnp_sent"), "asked of others"),
                        Line(_events("cnp_handled"), "done here"),
                        Line(_events("cnp_ignored"), "ignored here"),
                    ),
                    why="Notices to slow down, sent and obeyed. Good follows the marks; ignored means that "
                    "congestion control is off here.",
                    unit="pps",
                    empty="No notice in this time",
                    width=6,
                ),
                timeline(
                    "3. Pauses (PFC)",
                    (
                        Line(
                            f"max by (device) (rate({H('gpuhost_rdma_pause_seconds_total')}[$__rate_interval]))",
                            "{{device}}",
                        ),
                        Line(
                            f"max by (device) (rate({H('gpuhost_rdma_pause_asked_seconds_total')}[$__rate_interval]))"
                            " > 0",
                            "{{device}} asks",
                        ),
                        Line(f"vector({_PFC_SHARE})", "5 %", dashed=True, colour=WATCH),
                    ),
                    why="Share of time in pause, of each port's worst priority. Good is near 0: pauses mean that "
                    "slowing down was not enough. Told: the network pushes back. Asks: this host takes packets too "
                    "slowly; look at PCIe, IOMMU, NUMA.",
                    unit="percentunit",
                    empty=_NO_ETHERNET,
                    width=6,
                ),
                timeline(
                    "4. Packets are lost or sent again",
                    (
                        Line(
                            "sum by (device, priority, reason)"
                            f" (rate({H('gpuhost_rdma_priority_discards_total')}[$__rate_interval])) > 0",
                            "{{device}} drops priority {{priority}}: {{reason}}",
                        ),
                        Line(
                            _events("~retransmission|adaptive_retransmission|sequence_nak|implied_nak|.*timeout"),
                            "{{type}}",
                        ),
                        Line(_events("~rnr_nak|out_of_buffer|duplicate_request"), "{{type}}, slow receiver"),
                    ),
                    why="What was lost on the way, dropped on arrival or came to a receiver that was not ready for it, "
                    "a second. Dropped for port or buffer: PFC does not hold the senders back; for congestion: "
                    "this host is too slow. Good is none; timeouts stall the job.",
                    unit="pps",
                    sparse=True,
                    colours=_AS_LONG_AS_OTHERS,
                    empty="Nothing was lost in this time: good",
                    width=6,
                ),
            ),
            height=9,
            title="Congestion, from first sign to loss",
        ),
        Section(
            (
                timeline(
                    "Latency over RDMA and MPI",
                    (
                        Line(
                            f"max by (peer, transport) ("
                            f"{H('gpuhost_fabric_round_trip_median_seconds', transport='~rdma|mpi')})",
                            "{{peer}} ({{transport}})",
                        ),
                        Line(
                            f"max({H('gpuhost_target_collective_latency_seconds')})",
                            "target",
                            dashed=True,
                        ),
                    ),
                    why="Median round trip of small messages. Good is below the dashed line, which is 5 µs. It is "
                    "for small CPU-buffer messages, not for NCCL.",
                    unit="s",
                    empty=_NO_PROBE,
                ),
                timeline(
                    "Latency over TCP, against its past",
                    (
                        Line(
                            f"max by (peer) ({H('gpuhost_fabric_round_trip_drift_ratio', transport='tcp')})",
                            "{{peer}}",
                        ),
                    ),
                    why="How slow each path is against itself over a day. Good is about 1.",
                    unit="suffix: x",
                    empty=_NO_PROBE,
                ),
                timeline(
                    "Probes lost over TCP",
                    (
                        Line(
                            f"max by (peer) ({H('gpuhost_fabric_probe_loss_ratio', transport='tcp')})",
                            "{{peer}}",
                        ),
                    ),
                    why="Share of probes that were not answered. Good is 0; more is a path or host to look at.",
                    unit="percentunit",
                    most=1,
                    empty=_NO_PROBE,
                ),
            ),
            title="Latency",
        ),
    ),
)
