"""The exposition reads back through the client library's own parsers, in both formats."""

from __future__ import annotations

import gzip
import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.fakes import FakeClock, Scripted

from gpuhost_exporter import runner
from gpuhost_exporter.exposition import Block, Exposition, Renderer, gzipped
from gpuhost_exporter.specs import counter, gauge, info

WATTS = gauge("gpuhost_test_power_watts", 'Power with a "quote", a \\ and more.', "gpu", "uuid")
BYTES = counter("gpuhost_test_bytes_total", "Bytes.", "gpu")
INFO = info("gpuhost_test_info", "Facts.", "name")


def read(page: bytes, openmetrics: bool):
    families = (parse_openmetrics if openmetrics else parse_text)(page.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


@pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])
@given(text=st.text(), value=st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_and_value_reads_back_as_it_was(openmetrics, text, value):
    page, count = Renderer().block(
        [WATTS("0", text, value=value), BYTES("1", value=abs(value)), INFO(text)], openmetrics
    )
    page += b"# EOF\n" if openmetrics else b""
    seen = read(page, openmetrics)
    assert count == 3
    assert seen["gpuhost_test_power_watts", (("gpu", "0"), ("uuid", text))] == value
    assert seen["gpuhost_test_bytes_total", (("gpu", "1"),)] == abs(value)
    assert seen["gpuhost_test_info", (("name", text),)] == 1


def test_types_help_and_unit_are_those_of_each_format():
    samples = [WATTS("0", "u", value=1), BYTES("0", value=2), INFO("n")]
    text = Renderer().block(samples, openmetrics=False)[0].decode()
    assert "# TYPE gpuhost_test_bytes_total counter\n" in text
    assert "# TYPE gpuhost_test_info gauge\n" in text
    assert "UNIT" not in text
    opened = Renderer().block(samples, openmetrics=True)[0].decode()
    assert "# TYPE gpuhost_test_bytes counter\n# UNIT gpuhost_test_bytes bytes\n" in opened
    assert "# TYPE gpuhost_test info\n" in opened


def test_a_series_given_twice_counts_once_and_what_is_no_number_is_left_out():
    samples = [
        WATTS("0", "u", value=1),
        WATTS("0", "u", value=2),
        WATTS("1", "u", value=math.nan),
        WATTS("2", "u", value=math.inf),
    ]
    page, count = Renderer().block(samples, openmetrics=False)
    assert read(page, openmetrics=False) == {("gpuhost_test_power_watts", (("gpu", "0"), ("uuid", "u"))): 2}
    assert count == 1


def test_a_name_that_is_no_utf8_costs_a_byte_and_not_the_scrape():
    page, _ = Renderer().block([WATTS("0", "md_caf\udce9", value=1)], openmetrics=False)
    assert read(page, openmetrics=False) == {("gpuhost_test_power_watts", (("gpu", "0"), ("uuid", "md_caf?"))): 1}


@pytest.fixture
def served():
    clock = FakeClock()
    value = [1.0]
    running = runner.Runner([(Scripted(lambda: [WATTS("0", "u", value=value[0])]), 1.0)], clock)
    return running.tasks[0], clock, value, Exposition(running, clock, lambda: ())


def test_a_scrape_shows_what_was_published_last_and_never_polls(served):
    task, clock, value, exposition = served
    key = ("gpuhost_test_power_watts", (("gpu", "0"), ("uuid", "u")))
    assert key not in read(exposition.render(openmetrics=True, gzip=False), openmetrics=True)
    task.poll()
    value[0] = 2.0
    assert read(exposition.render(openmetrics=True, gzip=False), openmetrics=True)[key] == 1
    task.poll()
    assert read(exposition.render(openmetrics=True, gzip=False), openmetrics=True)[key] == 2
    clock.time += 31
    later = read(exposition.render(openmetrics=True, gzip=False), openmetrics=True)
    assert key not in later
    assert later["gpuhost_collector_age_seconds", (("collector", "scripted"),)] == 31


def test_the_compressed_page_is_the_page(served):
    task, _, _, exposition = served
    task.poll()
    page = gzip.decompress(exposition.render(openmetrics=False, gzip=True)).decode()
    assert "gpuhost_test_power_watts" in page
    assert 'gpuhost_exporter_scrapes_total{format="text"} 1.0' in page


@given(pages=st.lists(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=300)), max_size=6), max_size=5))
def test_blocks_compressed_before_are_the_same_page_beside_new_ones(pages):
    """As a decompressor sees it that stops at the end of a gzip member, which is what browsers do."""
    kept = {}
    for page in pages:
        kept |= {place: Block(text * 50, 0) for place, text in page}
        blocks = list(kept.values())
        reader = zlib.decompressobj(16 + zlib.MAX_WBITS)
        assert reader.decompress(gzipped(blocks)) == b"".join(block.text for block in blocks)
        assert reader.eof
        assert not reader.unused_data


def test_only_what_tells_something_else_is_rendered_and_compressed_anew(served, monkeypatch):
    task, _, value, exposition = served
    compressed = []
    real = zlib.compressobj

    class Recording:
        def __init__(self, *arguments):
            self._compressor = real(*arguments)
            self.flush = self._compressor.flush

        def compress(self, text):
            compressed.append(text)
            return self._compressor.compress(text)

    task.poll()
    exposition.render(openmetrics=True, gzip=True)
    monkeypatch.setattr("gpuhost_exporter.exposition.zlib.compressobj", Recording)
    for told, made in ((1.0, [False]), (2.0, [True, False])):  # what the exporter tells of itself is always new
        compressed.clear()
        value[0] = told
        task.poll()
        page = gzip.decompress(exposition.render(openmetrics=True, gzip=True))
        assert [b"power_watts" in text for text in compressed] == made
        assert f'power_watts{{gpu="0",uuid="u"}} {told}'.encode() in page


def test_the_exporter_counts_what_it_served(served):
    _, _, _, exposition = served
    first = exposition.render(openmetrics=False, gzip=False)
    lines = sum(not line.startswith("#") for line in first.decode().splitlines())
    seen = read(exposition.render(openmetrics=False, gzip=False), openmetrics=False)
    assert seen["gpuhost_exporter_samples_served_total", ()] == lines


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: gauge("other_x", "X."), "not a gpuhost_ metric"),
        (lambda: gauge("gpuhost_x_total", "X."), "ends in _total"),
        (lambda: counter("gpuhost_x", "X."), "ends in _total"),
        (lambda: gauge("gpuhost_x_info", "X."), "ends in _info"),
        (lambda: gauge("gpuhost_x", "No stop"), "full stop"),
        (lambda: gauge("gpuhost_x", "X.", "a", "a"), "bad label"),
        (lambda: gauge("gpuhost_x", "X.", "Bad"), "bad label"),
    ],
)
def test_a_spec_that_breaks_the_conventions_cannot_be_declared(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        build()


def test_a_wrong_number_of_labels_is_refused_at_once():
    with pytest.raises(TypeError, match="takes labels"):
        WATTS("0")
