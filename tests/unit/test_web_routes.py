"""What each path answers, and what the answer says about itself."""

from __future__ import annotations

import re

import pytest

from gpuhost_exporter.web.message import Request
from gpuhost_exporter.web.routes import Routes

ROUTES = Routes(
    metrics=lambda openmetrics, gzip: f"openmetrics={openmetrics} gzip={gzip}".encode(),
    healthy=lambda: (True, "the sampler is alive"),
    ready=lambda: (False, "not polled yet: nvme"),
    page=lambda nonce: f"<script nonce={nonce}>".encode(),
    verdict=lambda: ("unfit", "GPU 3: needs a reset"),
)


def ask(path, query="", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = ROUTES(Request("GET", path, query, names, "127.0.0.1"))
    return response.status, dict(response.headers), response.body.decode()


@pytest.mark.parametrize(
    ("accept", "encoding", "content_type", "body"),
    [
        ("", "", "text/plain; version=0.0.4; charset=utf-8", "openmetrics=False gzip=False"),
        (
            "application/openmetrics-text;version=1.0.0",
            "gzip",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "openmetrics=True gzip=True",
        ),
    ],
    ids=["plain", "prometheus"],
)
def test_metrics_come_as_the_headers_say(accept, encoding, content_type, body):
    status, headers, text = ask("/metrics", accept=accept, accept_encoding=encoding)
    assert (status, headers["Content-Type"], text) == (200, content_type, body)
    assert headers.get("Content-Encoding", "") == encoding
    assert headers["Vary"] == "Accept, Accept-Encoding"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("query", ["collect[]=nvml", "name[]=up", "x"])
def test_a_filter_that_would_be_ignored_is_refused(query):
    status, _, body = ask("/metrics", query)
    assert status == 400
    assert "--no-collector" in body


def test_probes_tell_state_and_reason():
    assert ask("/healthz")[::2] == (200, "the sampler is alive\n")
    assert ask("/readyz")[::2] == (503, "not polled yet: nvme\n")


@pytest.mark.parametrize("path", ["/metrics/", "/favicon.ico", "/../metrics", "/%6detrics", "*", "//"])
def test_other_paths_are_not_found_and_told_which_there_are(path):
    status, headers, body = ask(path)
    assert status == 404
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert all(known in body for known in ("/metrics", "/healthz", "/readyz"))
    assert "openmetrics" not in body


def test_the_page_runs_only_its_own_script():
    (_, headers, body), (_, _, other) = ask("/"), ask("/")
    nonce = body.removeprefix("<script nonce=").removesuffix(">")
    policy = headers["Content-Security-Policy"]
    assert re.fullmatch(r"[A-Za-z0-9+/]{22}==", nonce)
    assert f"script-src 'nonce-{nonce}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert other != body  # a nonce is good for one answer
