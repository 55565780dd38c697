"""prometheus_client's own HTTP server over the samples of a text page: `client_peer.py PAGE PORT`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families


class Page:
    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))

    def collect(self):
        return self.families


def main() -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Page(Path(sys.argv[1]).read_text(encoding="utf-8")))
    start_http_server(int(sys.argv[2]), addr="127.0.0.1", registry=registry)
    signal.pause()


if __name__ == "__main__":
    main()
