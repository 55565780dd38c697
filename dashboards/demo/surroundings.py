"""What the demo's hosts have beside what a simulation tells: peers, a stored verify, an inference endpoint.

All of it is as simulated as they are. A simulated host probes nobody and is not measured, and serves no model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gpuhost_exporter.sim import catalogue
from gpuhost_exporter.sources.state import State
from gpuhost_exporter.targets import Targets
from gpuhost_exporter.verify import fio, result
from gpuhost_exporter.verify.thresholds import Threshold, judge

ENDPOINT = "gpu-endpoint-1"
_REQUESTS_PER_SECOND = 12.0  # above the ten that the guide's rule asks for
_SLOW_HOST, _SLOW_SHARE = 3, 0.82  # of what its sisters measured
_INTERVAL = 5


def peer(names: Sequence[str], name: str) -> str:
    """Whom a host probes."""
    return names[(names.index(name) + 1) % len(names)]


def configure(file: Path, names: Sequence[str], name: str) -> None:
    """A host's [latency]: the same ring on all, of addresses and a key that nobody uses."""
    hosts = "".join(f'{each} = "127.0.0.1:{number}"\n' for number, each in enumerate(names, 1))
    file.write_text(
        f'[latency]\nname = "{name}"\nkey-file = "none"\ninterval = {_INTERVAL}\n'
        f'[latency.hosts]\n{hosts}[latency.rdma]\ndevice = "mlx5_0"\n',
        encoding="utf-8",
    )


def keep_verify(folder: Path, host: str, number: int, at: float) -> None:
    """A verify's figures of the host's array, as if taken: what its drives can do together, and one host less."""
    spec = catalogue.host(host)
    share = _SLOW_SHARE if number == _SLOW_HOST else 1 - 0.004 * number
    guide = Targets.load({}).guide
    good, poor = guide.storage_good_bytes_per_second, guide.storage_poor_bytes_per_second
    rates = {"write": spec.write_limit, "read": spec.read_limit}
    results = tuple(
        judge(
            fio.CHECKS[direction], spec.data_array, share * rate, "bytes_per_second", good, Threshold(1.0, poor / good)
        )
        for direction, rate in rates.items()
    )
    state = State(str(folder))
    state.update(result.STATE_NAME, lambda data: result.keep(data, result.Run(at, "quick", results)))
    state.flush()
    state.close()


def requests_served(seconds: float) -> str:
    """What vLLM's /metrics tells of requests, so long after it was started."""
    labels = 'finished_reason="stop",model_name="simulated"'
    return f"vllm:request_success_total{{{labels}}} {int(_REQUESTS_PER_SECOND * seconds)}\n"


class _Handler(BaseHTTPRequestHandler):
    began = 0.0

    def do_GET(self) -> None:
        body = requests_served(time.time() - self.began).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Nobody reads it."""


def serve_endpoint(began: float) -> int:
    """Answer as an inference endpoint that was started then; the port. Ends with this process."""
    handler = type("Handler", (_Handler,), {"began": began})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, name="endpoint", daemon=True).start()
    return server.server_port
