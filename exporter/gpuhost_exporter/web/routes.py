"""The pages, and what each one's answer says about itself."""

from __future__ import annotations

import binascii
import os
from collections.abc import Callable

from gpuhost_exporter.web.message import Request, Response, text
from gpuhost_exporter.web.negotiate import OPENMETRICS, TEXT, accepts_gzip, wants_openmetrics

_PAGES = """\
not found; there is
  /         status page
  /metrics  for Prometheus
  /healthz  200 while the sampler is alive
  /readyz   200 once every collector has polled
  /verdict  200 while the host is fit for a job"""

_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Routes:
    """The server's handler.

    `metrics(openmetrics, gzip)` is the exposition; `healthy` and `ready` tell state and reason; `page(nonce)` is
    the status page, whose inline script and style carry that nonce; `verdict` is fit, unfit or unknown, and why.
    """

    def __init__(
        self,
        metrics: Callable[[bool, bool], bytes],
        healthy: Callable[[], tuple[bool, str]],
        ready: Callable[[], tuple[bool, str]],
        page: Callable[[str], bytes],
        verdict: Callable[[], tuple[str, str]],
    ) -> None:
        self._metrics = metrics
        self._page = page
        self._verdict = verdict
        self._probes = {"/healthz": healthy, "/readyz": ready}

    def __call__(self, request: Request) -> Response:
        if request.path == "/metrics":
            return self._exposition(request)
        if request.path == "/":
            return self._status_page()
        if request.path == "/verdict":
            word, reason = self._verdict()
            return text(200 if word == "fit" else 503, f"{word}: {reason}")
        probe = self._probes.get(request.path)
        if probe:
            good, reason = probe()
            return text(200 if good else 503, reason)
        return text(404, _PAGES)

    def _exposition(self, request: Request) -> Response:
        if request.query:
            # collect[] and the like would be ignored, and the answer taken for what was asked for.
            return text(400, "/metrics takes no parameters; choose with --collector.NAME and --no-collector.NAME")
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        gzip = accepts_gzip(request.headers.get("accept-encoding", ""))
        headers = [
            ("Content-Type", OPENMETRICS if openmetrics else TEXT),
            ("Vary", "Accept, Accept-Encoding"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if gzip:
            headers.append(("Content-Encoding", "gzip"))
        return Response(200, tuple(headers), self._metrics(openmetrics, gzip))

    def _status_page(self) -> Response:
        nonce = binascii.b2a_base64(os.urandom(16), newline=False).decode()
        headers = (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", _POLICY.format(nonce=nonce)),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        )
        return Response(200, headers, self._page(nonce))
