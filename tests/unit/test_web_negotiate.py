"""Which form of /metrics is served, from what real clients send to what they should not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import choose_encoder

from gpuhost_exporter.web.negotiate import OPENMETRICS, TEXT, accepts_gzip, wants_openmetrics

OM = "application/openmetrics-text"
PROMETHEUS_2 = f"{OM};version=1.0.0,{OM};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
PROMETHEUS_3 = (
    f"{OM};version=1.0.0;escaping=allow-utf-8;q=0.6,{OM};version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_TEXT_FIRST = f"text/plain;version=0.0.4;q=0.6,{OM};version=1.0.0;q=0.5,*/*;q=0.2"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        (PROMETHEUS_TEXT_FIRST, False),
        (BROWSER, False),
        ("", False),
        ("*/*", False),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily", False),
        (OM, True),
        (OM.upper(), True),
        (f'{OM}; version="1.0.0"; charset=utf-8', True),
        (f"text/plain,{OM}", True),
        (f"{OM};version=0.0.1", False),
        (f"{OM};version=2.0.0", False),
        (f"{OM};version=2.0.0,{OM};version=1.0.0;q=0.5", True),
        (f"{OM};version=abc", False),
        (f"{OM};q=0", False),
        (f"{OM};q=0.2,text/plain;q=0.9", False),
        (f"{OM};q=0.5,text/plain;q=0.1,*/*;q=0.9", True),
        (f"{OM};q=0.5,*/*;q=0.9", False),
        (f"{OM};q=high", False),
        (f"{OM};q=nan", False),
        (f"{OM};q=7", False),
        (f"{OM};;;=,,;q", True),
    ],
)
def test_openmetrics_goes_to_whom_prefers_it(accept, expected):
    assert wants_openmetrics(accept) is expected


@pytest.mark.parametrize("accept", [PROMETHEUS_2, PROMETHEUS_3, BROWSER, "", "*/*", OM, f"{OM};version=0.0.1"])
def test_it_agrees_with_prometheus_client_where_that_is_sound(accept):
    _, content_type = choose_encoder(accept)
    ours = OPENMETRICS if wants_openmetrics(accept) else TEXT
    assert (
        content_type.partition("; escaping")[0].replace("text/plain; version=1.0.0", "text/plain; version=0.0.4")
        == ours
    )


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip, br, zstd", True),
        ("gzip;q=0.5", True),
        ("*", True),
        ("identity;q=0.5, *;q=0.5", True),
        ("", False),
        ("identity", False),
        ("deflate", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("gzip;q=0.5, identity;q=1", False),
        ("gzip;q=x", False),
        ("gzippy", False),
    ],
)
def test_gzip_goes_to_whom_allows_it(accept_encoding, expected):
    assert accepts_gzip(accept_encoding) is expected


@given(st.text())
def test_any_header_has_an_answer(header):
    assert wants_openmetrics(header) in (True, False)
    assert accepts_gzip(header) in (True, False)
