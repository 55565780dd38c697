"""The command line of `verify`, apart from what it runs: every command's parser is built at start."""

from __future__ import annotations

import argparse

from gpuhost_exporter.arguments import text

DESCRIPTION = (
    "Accept or reject this host: what it tells, then what it delivers, measured with what is installed of fio, "
    "nvbandwidth, nccl-tests, perftest and MPI. Exit code 0 accepted, 1 rejected, 2 not judged, 130 interrupted."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--passive", dest="mode", action="store_const", const="passive", help="look, measure nothing")
    modes.add_argument(
        "--full",
        dest="mode",
        action="store_const",
        const="full",
        help="10 minutes in place of 2, on a host with up to 8 RDMA ports",
    )
    parser.add_argument(
        "--directory", type=text, metavar="DIR", help="have fio write and read files there, which are removed"
    )
    parser.add_argument(
        "--peer", type=text, metavar="HOST", help="a host where perftest listens and mpirun may start a program by ssh"
    )
    parser.add_argument("--while-busy", action="store_true", help="measure though somebody uses the GPUs")
    parser.add_argument("--new-baseline", action="store_true", help="take this run as what the host can do")
    parser.add_argument("--json", action="store_true", help="the report for programs")
    parser.add_argument("--junit", type=text, metavar="FILE", help="write a report for pipelines, too")
    parser.add_argument(
        "--simulate.control",
        dest="control",
        type=text,
        metavar="FILE",
        help="join the simulation of a running exporter",
    )
    parser.set_defaults(mode="quick")
