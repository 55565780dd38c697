"""A server in a process of its own, so that its memory can be told: prints its address, runs until end of input.

Serves a page of 250 KB, made anew for each request as the exposition does. Argument: web configuration file, or "".
"""

from __future__ import annotations

import sys
import zlib

from gpuhost_exporter.sources import linux
from gpuhost_exporter.web.routes import Routes
from gpuhost_exporter.web.server import Server

LINE = b'gpuhost_nvlink_bytes_total{gpu="%d",uuid="GPU-aaaaaaaa-bbbb-cccc-dddd-%012d",link="%d",direction="rx"} %d.0\n'
PAGE = [LINE % (number % 8, number, number % 18, number * 123457) for number in range(2300)]


def metrics(openmetrics, gzip):
    page = b"".join(PAGE)
    if not gzip:
        return page
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    return compressor.compress(page) + compressor.flush()


def main():
    sys.setswitchinterval(0.001)  # both as the exporter does
    linux.bound_malloc()
    routes = Routes(
        metrics, lambda: (True, "alive"), lambda: (True, "ready"), lambda nonce: nonce.encode(), lambda: ("fit", "well")
    )
    server = Server(["127.0.0.1:0"], routes, sys.argv[1] or None)
    server.start()
    print(server.addresses[0], flush=True)
    sys.stdin.read()
    counts = server.counts()
    server.close()
    print(counts, flush=True)


if __name__ == "__main__":
    main()
