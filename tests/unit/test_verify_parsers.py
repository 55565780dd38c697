"""What the measuring programs print, and what becomes of anything else."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.programs import recorded

from gpuhost_exporter.errors import Malformed
from gpuhost_exporter.sources.tools import Full
from gpuhost_exporter.verify import fio, gpus, wire
from gpuhost_exporter.verify.measurement import Failed

COLUMN = {"ib_write_bw": "BW_average", "ib_write_lat": "t_typical"}
PARSERS = {
    "fio": lambda text: fio.parse(text, "write"),
    "nvbandwidth": gpus.parse_copies,
    "nccl": gpus.parse_all_reduce,
    "perftest": lambda text: wire.parse_perftest(text, "t_typical"),
    "allreduce": wire.parse_all_reduce,
}


@pytest.mark.parametrize(("direction", "rate"), [("write", 3802549769), ("read", 1054801642)])
def test_fio_tells_the_bytes_a_second_of_all_jobs_together(direction, rate):
    assert fio.parse(recorded(f"fio-{direction}"), direction) == rate


def test_fio_may_say_something_before_its_document():
    assert fio.parse("note: both iodepth >= 1 and {so on}\n" + recorded("fio-write"), "write") == 3802549769


def test_fio_on_a_full_disk_is_no_slow_drive():
    with pytest.raises(Full, match="no space left"):
        fio.parse(recorded("fio-full-disk"), "write")


def test_fio_that_met_a_broken_drive_says_so():
    with pytest.raises(Failed, match="Input/output error"):
        fio.parse(recorded("fio-write").replace('"error" : 0', '"error" : 5'), "write")


def test_a_direction_that_fio_did_not_take_has_no_rate():
    with pytest.raises(Malformed, match="expected a rate"):
        fio.parse(recorded("fio-write"), "read")


def test_nvbandwidth_tells_each_cell_and_nothing_for_a_gpu_with_itself():
    told = gpus.parse_copies(recorded("nvbandwidth"))
    assert told["host_to_device_memcpy_ce"] == ("Passed", ((55.33e9, 55.31e9),))
    assert told["device_to_device_memcpy_read_ce"] == ("Passed", ((None, 393.66e9), (393.48e9, None)))


@pytest.mark.parametrize(
    ("copied", "peak", "traffic"),
    [
        pytest.param(1.31e12, 3.35e12, 2.62e12, id="a copy reads and writes"),
        pytest.param(2.62e12, 3.35e12, 2.62e12, id="counted twice already"),
        pytest.param(1.31e12, None, 2.62e12, id="unknown product"),
    ],
)
def test_no_copy_moves_more_than_the_memory_can(copied, peak, traffic):
    assert gpus.memory_traffic(copied, peak) == traffic


def test_the_largest_size_counts_and_not_the_average_over_all():
    assert gpus.parse_all_reduce(recorded("all_reduce_perf")) == gpus.Reduced(473.88e9, right=True)


@pytest.mark.parametrize("wrong", ["1", "3e+06"])
def test_a_sum_that_came_out_wrong_is_seen(wrong):
    text = recorded("all_reduce_perf").replace("473.88      0", f"473.88      {wrong}")
    assert not gpus.parse_all_reduce(text).right


@pytest.mark.parametrize(("program", "figure"), [("ib_write_bw", 391.87), ("ib_write_lat", 1.49)])
def test_perftest_tells_the_average_rate_and_the_typical_latency(program, figure):
    assert wire.parse_perftest(recorded(program), COLUMN[program]) == figure


@pytest.mark.parametrize(("hosts", "found"), [("1 host", 1), ("2 hosts", 2)])
def test_an_allreduce_tells_its_hosts_and_microseconds_whatever_mpi_says_before(hosts, found):
    said = f"A warning of MPI: 12 us\nallreduce of 8 bytes, 2 ranks, {hosts}: median 2.31 us\n"
    assert wire.parse_all_reduce(said) == (found, 2.31)


ALMOST = (
    r"#bytes t_typical\n[0-9]{1,400} [0-9.e+-]{1,9}\n",
    r"allreduce of 8 bytes, 2 ranks, [0-9]{1,5} hosts: median [0-9.e+-]{1,9} us",
)


@pytest.mark.parametrize("name", PARSERS)
@given(text=st.one_of(st.text(), st.binary().map(repr), *map(st.from_regex, ALMOST)))
def test_any_text_is_understood_or_refused_as_malformed(name, text):
    with suppress(Malformed, Failed, Full):
        PARSERS[name](text)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["jobs", "error", "write", "bw_bytes", "nvbandwidth", "testcases", "name", "status", "bandwidth_matrix"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", ["fio", "nvbandwidth"])
@given(document=JSON)
def test_any_document_is_understood_or_refused_as_malformed(name, document):
    with suppress(Malformed, Failed, Full):
        PARSERS[name](json.dumps(document, indent=0))
