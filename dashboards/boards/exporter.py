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
    description="Whether the exporter on this host reads everything, how old what it tells is, and who asks it.",
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
                    "Not reading",
                    f"count({H('gpuhost_collector_up')} == 0) or 0 * count({H('gpuhost_collector_up')})",
                    why="Collectors whose last poll failed or is too old. Good is 0; the table below names them. "
                    "A subject that this host does not have is not counted.",
                    steps=((None, GOOD), (1, ACT)),
                    empty=_NO_HOST,
                    width=3,
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
                    width=5,
                ),
                answer(
                    "Figures",
                    f"max by (target) ({H('gpuhost_simulated')})",
                    why="Simulated figures say so: nothing on the other pages is real then.",
                    states={"0": ("real", GOOD), "1": ("simulated", WATCH)},
                    empty=_NO_HOST,
                    width=5,
                ),
                answer(
                    "Version",
                    f"max by (version, python) ({H('gpuhost_exporter_build_info')})",
                    why="Version of the exporter, and of the Python that runs it.",
                    legend="{{version}} on Python {{python}}",
                    empty=_NO_HOST,
                    width=4,
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
                    width=8,
                ),
                timeline(
                    "Readers: started again",
                    (
                        Line(
                            f"sum by (reason) (increase({H('gpuhost_nvml_reader_restarts_total')}[$__rate_interval]))",
                            "nvml: {{reason}}",
                        ),
                        Line(
                            f"increase({H('gpuhost_reader_restarts_total', reader='privileged')}[$__rate_interval])",
                            "privileged",
                        ),
                    ),
                    why="Processes that read for the exporter: NVML, and what needs a privilege (kernel log, drives' "
                    "health, others' processes). Good is none by crashed or hung, and none of privileged.",
                    unit="suffix: times",
                    empty=_NO_HOST,
                    decimals=0,
                ),
                timeline(
                    "Readers: stuck",
                    (Line(H("gpuhost_reader_stuck"), "{{reader}}"),),
                    why="Readers that were killed and that the kernel cannot end. Good is 0; else only a reboot helps, "
                    "and what they read is not known until then.",
                    unit="suffix: processes",
                    empty=_NO_HOST,
                    decimals=0,
                ),
            ),
            height=6,
            title="NVIDIA driver and readers",
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
                    width=6,
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
                    width=6,
                ),
                timeline(
                    "Clients: connections open",
                    (Line(H("gpuhost_exporter_connections_open"), "open"),),
                    why="Clients of the exporter's port now, idle ones too. Good is a few; those that pile up are not "
                    "Prometheus'.",
                    unit="suffix: open",
                    empty=_NO_HOST,
                    width=6,
                    decimals=0,
                ),
                timeline(
                    "Clients: refused or failed",
                    (
                        Line(
                            f"60 * sum by (code)"
                            f" (rate({H('gpuhost_exporter_requests_total', code='!200')}[$__rate_interval])) > 0",
                            "{{code}}",
                        ),
                    ),
                    why="Requests a minute that were not answered with 200. Good is none: Prometheus' are not.",
                    unit="cpm",
                    sparse=True,
                    empty="No request was refused or failed in this time: good",
                    width=6,
                ),
            ),
            height=7,
            title="What it does",
        ),
    ),
)
