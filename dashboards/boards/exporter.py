"""Exporter: can what the other pages show be believed?"""

from kit.board import HOST, Board, Section
from kit.panels import answer, states, timeline
from kit.parts import ACT, FINE, GOOD, PLAIN, WATCH, Line
from kit.tables import Column, listing

H = HOST
_NO_HOST = "This host has not been scraped in this time"

BOARD = Board(
    uid="gpuhost-exporter",
    title="gpuhost / Exporter",
    description="Whether the exporter on this host reads everything, how old what it tells is, and what it costs.",
    sections=(
        Section(
            (
                answer(
                    "Scraped",
                    f"min({H('up')} and on (cluster, job, instance) {H('gpuhost_exporter_build_info')})"
                    f" or 0 * min(max_over_time({H('gpuhost_exporter_build_info')}[$__range]))",
                    why="Whether Prometheus reached the exporter at its last scrape. If not, look at the unit there.",
                    states={"1": ("yes", GOOD), "0": ("no", ACT)},
                    empty=_NO_HOST,
                    width=3,
                ),
                answer(
                    "Collectors not reading",
                    f"count({H('gpuhost_collector_up')} == 0) or 0 * count({H('gpuhost_collector_up')})",
                    why="Collectors whose last poll failed or is too old. Good is 0; the table below names them. "
                    "A subject that this host does not have is not counted.",
                    steps=((None, GOOD), (1, ACT)),
                    empty=_NO_HOST,
                    width=4,
                ),
                answer(
                    "Driver",
                    f"max by (state) ({H('gpuhost_nvml_state')} == 1)",
                    why="State of the way to NVIDIA's driver. Good is ok; no_gpus, no_library and no_driver are "
                    "normal on a host without GPUs, released is by request.",
                    legend="{{state}}",
                    empty=_NO_HOST,
                    width=4,
                ),
                answer(
                    "Kernel log",
                    H("gpuhost_kernel_log_up"),
                    why="Whether XID errors are read from the kernel log. Unreadable: CAP_SYSLOG is missing, and "
                    "GPUs that fall off the bus leave no XID here.",
                    states={"1": ("readable", GOOD), "0": ("unreadable", ACT)},
                    empty="The xid collector is off",
                    width=4,
                ),
                answer(
                    "Figures",
                    f"max by (target) ({H('gpuhost_simulated')})",
                    why="Simulated figures say so: nothing on the other pages is real then.",
                    states={"0": ("real", GOOD), "1": ("simulated", WATCH)},
                    empty=_NO_HOST,
                    width=4,
                ),
                answer(
                    "Version",
                    f"max by (version, python) ({H('gpuhost_exporter_build_info')})",
                    why="Version of the exporter, and of the Python that runs it.",
                    legend="{{version}} on Python {{python}}",
                    empty=_NO_HOST,
                    width=5,
                ),
            ),
            height=4,
        ),
        Section(
            (
                listing(
                    "Collectors",
                    (
                        Column("Collector", label="collector", width=130),
                        Column(
                            "Reads",
                            f"max by (collector) ({H('gpuhost_collector_up')})",
                            states={"1": ("yes", GOOD), "0": ("no", ACT)},
                            width=70,
                        ),
                        Column(
                            "Age",
                            f"max by (collector) ({H('gpuhost_collector_age_seconds')})",
                            unit="s",
                            decimals=1,
                        ),
                        Column(
                            "In flight",
                            f"max by (collector) ({H('gpuhost_collector_in_flight_seconds')})",
                            unit="s",
                            decimals=1,
                            steps=((None, PLAIN), (10, ACT)),
                        ),
                        Column(
                            "Last poll took",
                            f"max by (collector) ({H('gpuhost_collector_duration_seconds')})",
                            unit="s",
                            decimals=1,
                        ),
                        Column(
                            "Ticks missed in 1 h",
                            f"sum by (collector) (increase({H('gpuhost_collector_missed_ticks_total')}[1h]))",
                            decimals=0,
                        ),
                        Column(
                            "Errors in 1 h",
                            f"sum by (collector) (increase({H('gpuhost_collector_errors_total')}[1h]))"
                            f" or 0 * sum by (collector) ({H('gpuhost_collector_up')})",
                            decimals=0,
                            steps=((None, PLAIN), (1, WATCH)),
                        ),
                    ),
                    why="Every subject that the exporter reads. Good is an age below a few intervals and nothing in "
                    "flight for long: a poll that hangs is hardware that does not answer.",
                    sort="Age",
                    empty=_NO_HOST,
                    width=14,
                ),
                states(
                    "Collectors over time",
                    Line(f"max by (collector) ({H('gpuhost_collector_up')})", "{{collector}}"),
                    why="When each collector read its subject and when it did not. Good is reads throughout.",
                    shown={"1": ("reads", GOOD), "0": ("does not read", ACT)},
                    empty=_NO_HOST,
                    width=10,
                ),
            ),
            height=13,
        ),
        Section(
            (
                states(
                    "Way to the driver",
                    Line(
                        f"max by (state) ({H('gpuhost_nvml_state')} == 1)",
                        "{{state}}",
                    ),
                    why="Which state it was in, and when. Good is ok throughout.",
                    shown={"1": ("current", FINE)},
                    empty=_NO_HOST,
                    width=12,
                ),
                timeline(
                    "NVML reader: restarts and stuck",
                    (
                        Line(
                            f"sum by (reason) (increase({H('gpuhost_nvml_reader_restarts_total')}[$__rate_interval]))",
                            "restarted: {{reason}}",
                        ),
                        Line(H("gpuhost_nvml_reader_stuck"), "stuck"),
                    ),
                    why="Good is none by crashed or hung, and never one stuck: then the kernel cannot end it, and "
                    "only a reboot helps.",
                    empty=_NO_HOST,
                    width=12,
                    decimals=0,
                ),
            ),
            height=6,
            title="NVIDIA driver",
        ),
        Section(
            (
                timeline(
                    "Failed reads",
                    (
                        Line(
                            f"sum by (collector, kind) (rate({H('gpuhost_collector_errors_total')}[$__rate_interval]))"
                            " * 60 > 0",
                            "{{collector}}: {{kind}}",
                        ),
                    ),
                    why="Reads that failed, a minute, by kind. Good is none.",
                    unit="cpm",
                    sparse=True,
                    empty="No errors in this time: good",
                ),
                timeline(
                    "A scrape: rendering",
                    (
                        Line(
                            f"rate({H('gpuhost_exporter_render_seconds_total')}[$__rate_interval])"
                            " / on (cluster, job, instance) sum by (cluster, job, instance)"
                            f" (rate({H('gpuhost_exporter_scrapes_total')}[$__rate_interval]))",
                            "mean",
                        ),
                    ),
                    why="Seconds that rendering and compressing a page took. Good is a few milliseconds.",
                    unit="s",
                    empty=_NO_HOST,
                ),
                timeline(
                    "Clients",
                    (
                        Line(H("gpuhost_exporter_connections_open"), "connections open"),
                        Line(
                            f"sum(rate({H('gpuhost_exporter_requests_total', code='!200')}[$__rate_interval])) * 60",
                            "refused or failed a minute",
                        ),
                    ),
                    why="Who asks the exporter. Requests that were refused, and connections that pile up, are not "
                    "Prometheus'.",
                    empty=_NO_HOST,
                ),
            ),
            height=7,
            title="What it does and costs",
        ),
    ),
)
