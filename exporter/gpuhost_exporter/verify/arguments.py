"""The command line of `verify`, apart from what it runs: every command's parser is built at start."""

from __future__ import annotations

import argparse

from gpuhost_exporter.arguments import text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--passive", dest="mode", action="store_const", const="passive", help="look, measure nothing")
    modes.add_argument("--full", dest="mode", action="store_const", const="full", help="10 minutes in place of 2")
    parser.add_argument("--directory", type=text, metavar="DIR", help="have fio write and read there, cleaned up after")
    parser.add_argument("--peer", type=text, metavar="HOST", help="where perftest listens and MPI may start a rank")
    parser.add_argument("--while-busy", action="store_true", help="measure though somebody uses the GPUs")
    parser.add_argument("--new-baseline", action="store_true", help="take this run as what the host can do")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--junit", type=text, metavar="FILE", help="for pipelines")
    parser.add_argument("--simulate.control", dest="control", type=text, metavar="FILE")
    parser.set_defaults(mode="quick")
