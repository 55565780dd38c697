"""What is kept of a run, what it is compared with, and how it is shown."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhost_exporter.table import WIDTH
from gpuhost_exporter.verify import output
from gpuhost_exporter.verify.result import Result, Run, against, baseline, document, keep, last

NOW = 1795361000.0


def rate(value, verdict="pass", device="md0", **more):
    return Result("storage write", device, verdict, value=value, unit="bytes_per_second", **more)


def run(*results, mode="quick"):
    return Run(NOW, mode, results)


def test_what_passed_is_the_baseline_of_the_next_run_in_that_mode():
    data = keep({}, run(rate(20e9)))
    assert baseline(data, "quick") == {"storage write": {"md0": 20e9}}
    assert baseline(data, "full") == {}
    data = keep(data, run(rate(22e9), mode="full"))
    assert (baseline(data, "quick")["storage write"], baseline(data, "full")["storage write"]) == (
        {"md0": 20e9},
        {"md0": 22e9},
    )


@pytest.mark.parametrize("verdict", ["warn", "fail"])
def test_a_figure_that_did_not_pass_leaves_the_baseline_as_it_was(verdict):
    data = keep(keep({}, run(rate(20e9))), run(rate(8e9, verdict)))
    assert baseline(data, "quick") == {"storage write": {"md0": 20e9}}
    assert last(data).results == (rate(8e9, verdict),)
    assert baseline(keep(data, run(rate(8e9, verdict)), anew=True), "quick") == {"storage write": {"md0": 8e9}}


def test_a_host_that_gets_slower_run_by_run_is_held_against_its_best():
    """Each run is 6 % behind the one before, which by itself would pass for ever."""
    data, verdicts = {}, []
    for figure in (20e9, 18.8e9, 17.7e9, 16.6e9):
        (result,) = against(baseline(data, "quick"), [rate(figure)])
        verdicts.append(result.verdict)
        data = keep(data, run(result))
    assert verdicts == ["pass", "pass", "warn", "warn"]
    assert baseline(data, "quick") == {"storage write": {"md0": 20e9}}


def test_the_best_is_the_highest_rate_and_the_shortest_time_of_each_device():
    def late(seconds, device):
        return Result("RDMA write latency", device, "pass", value=seconds, unit="seconds")

    data = {}
    for figure, seconds in ((20e9, 2e-6), (22e9, 1.9e-6), (21e9, 2.1e-6)):
        data = keep(data, run(rate(figure), late(seconds, "mlx5_0 port 1"), late(3 * seconds, "mlx5_1 port 1")))
    assert baseline(data, "quick") == {
        "storage write": {"md0": 22e9},
        "RDMA write latency": {"mlx5_0 port 1": 1.9e-6, "mlx5_1 port 1": pytest.approx(5.7e-6)},
    }


@pytest.mark.parametrize(
    ("before", "now", "unit", "verdict"),
    [
        pytest.param(20e9, 18.1e9, "bytes_per_second", "pass", id="within what runs differ by"),
        pytest.param(20e9, 17.9e9, "bytes_per_second", "warn", id="slower"),
        pytest.param(20e9, 40e9, "bytes_per_second", "pass", id="faster"),
        pytest.param(2e-6, 2.1e-6, "seconds", "pass", id="a little later"),
        pytest.param(2e-6, 2.5e-6, "seconds", "warn", id="later"),
        pytest.param(2e-6, 1e-6, "seconds", "pass", id="sooner"),
    ],
)
def test_a_pass_that_has_fallen_behind_the_baseline_warns(before, now, unit, verdict):
    result = Result("check", "device", "pass", value=now, unit=unit)
    (compared,) = against({"check": {"device": before}}, [result])
    assert (compared.verdict, compared.baseline) == (verdict, before)
    assert ("of what this host did before" in compared.why) == (verdict == "warn")


def test_what_fails_or_was_never_measured_is_not_changed_by_a_baseline():
    failed, other = rate(1e9, "fail", why="9 % of what the hardware can do"), rate(20e9, device="md1")
    compared = tuple(against({"storage write": {"md0": 20e9}}, [failed, other, Result("driver", "", "pass")]))
    assert [(result.verdict, result.baseline) for result in compared] == [
        ("fail", 20e9),
        ("pass", None),
        ("pass", None),
    ]
    assert compared[0].why == failed.why


def test_a_run_that_was_kept_reads_back_as_it_was():
    kept = run(
        rate(20e9, target=18e9, baseline=21e9), Result("PCIe", "GPU 3", "warn", "5 x8", "5 x16", "8 of 16 lanes")
    )
    assert last(json.loads(json.dumps(keep({}, kept)))) == kept


OLD = {"at": NOW, "mode": "quick", "results": [document(run(rate(20e9)))["results"][0]]}


@pytest.mark.parametrize(
    ("stored", "results"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"last": None}, None, id="null"),
        pytest.param({"last": {"at": "yesterday", "results": []}}, None, id="another form of time"),
        pytest.param({"last": {"results": [], "at": True}}, None, id="a time that is none"),
        pytest.param({"last": OLD}, (rate(20e9),), id="no format told"),
        pytest.param(
            {"last": OLD | {"mode": "thorough", "host": 1}}, (rate(20e9),), id="a mode and a key of another day"
        ),
        pytest.param({"last": OLD | {"results": [{"check": "x"}, 7, *OLD["results"]]}}, (rate(20e9),), id="one result"),
        pytest.param(
            {"last": OLD | {"results": [{"check": "x", "verdict": "pass", "unit": "MB/s", "value": 9}]}},
            (Result("x", "", "pass"),),
            id="a unit that is not known any more",
        ),
    ],
)
def test_a_file_of_another_version_costs_what_cannot_be_understood(stored, results):
    found = last(stored)
    assert (found.results if found else None) == results


@pytest.mark.parametrize(
    "stored", [{}, {"baseline": 7}, {"baseline": {"quick": []}}, {"baseline": {"quick": {"a": 1, "b": {"c": "d"}}}}]
)
def test_a_baseline_in_another_form_compares_nothing(stored):
    assert not any(baseline(stored, "quick").values())
    assert baseline(keep(stored, run(rate(20e9))), "quick")["storage write"] == {"md0": 20e9}


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["last", "at", "mode", "results", "check", "device", "verdict", "unit", "value", "baseline", "quick"]
            ),
            inner,
        )
    ),
    max_leaves=15,
)


@given(data=st.dictionaries(st.sampled_from(["last", "baseline", "format"]), JSON))
def test_no_content_of_the_file_raises(data):
    last(data)
    baseline(data, "quick")


@pytest.mark.parametrize(
    ("verdicts", "accepted"),
    [
        (("pass", "warn", "skipped"), True),
        (("pass", "fail"), False),
        pytest.param(("skipped", "skipped"), False, id="nothing could be judged"),
    ],
)
def test_a_host_is_accepted_when_something_passed_and_nothing_failed(verdicts, accepted):
    assert run(*(Result("x", str(place), word) for place, word in enumerate(verdicts))).accepted == accepted


MIXED = run(
    *(Result("PCIe", f"GPU {index}", "pass", "5 x16", "5 x16") for index in (0, 1, 2, 4)),
    Result("PCIe", "GPU 3", "warn", "5 x8", "5 x16", "PCIe runs with 8 of 16 lanes"),
    rate(4e9, "fail", target=20e9, baseline=21.4e9, why="waits for nvme2n1 " + "and that is a long story " * 8),
    Result("MPI all-reduce", "", "pass", value=2.31e-6, unit="seconds", target=5e-6),
    Result("NCCL all-reduce", "", "skipped", why="one GPU only"),
)


def test_the_page_judges_first_and_fits_a_mail():
    lines = output.page(MIXED, "").splitlines()
    assert lines[0] == "REJECTED (quick, 2026-11-22 15:23 UTC): 5 pass, 1 warn, 1 fail, 1 skipped"
    assert max(map(len, lines)) <= WIDTH
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert rows["check"] == ["check", "measured", "target", "baseline", "verdict"]
    assert rows["PCIe, GPUs 0-2, 4"][-1] == "pass"
    assert rows["PCIe, GPU 3"][-1] == "warn"
    assert "4.00 GB/s  20.0 GB/s  21.4 GB/s  fail" in "\n".join(lines)
    assert "2.31 µs    5 µs" in "\n".join(lines)
    assert "skipped  NCCL all-reduce: one GPU only" in lines
    assert not [line for line in lines if "SIMULATED" in line]
    assert output.page(MIXED, "h100x8").startswith("SIMULATED host h100x8: no figure here is real\n")


def test_what_speaks_against_the_host_comes_before_the_table_and_notes_after_it():
    noted = Result("modes", "GPU 0", "pass", "persistence off", why="persistence mode is off")
    lines = output.page(run(*MIXED.results, noted), "").splitlines()
    begins = [line.split("  ")[0] for line in lines]
    order = ["fail", "warn", "check", "note", "skipped"]
    assert [begins.index(word) for word in order] == sorted(begins.index(word) for word in order)
    assert "warn  PCIe, GPU 3: PCIe runs with 8 of 16 lanes" in lines
    assert "note  modes, GPU 0: persistence mode is off" in lines


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_gets_narrow_columns(width):
    long = Result("RDMA ports", "mlx5_0 port 1", "pass", "400 Gb/s over a long cable", "400 Gb/s")
    lines = output.page(run(*MIXED.results, long), "", width).splitlines()
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line.startswith("RDMA ports") and "…" in line and line.endswith("  pass")]


def test_without_a_baseline_there_is_no_column_for_it():
    assert "baseline" not in output.page(run(rate(4e9)), "")
    assert "baseline" in output.page(run(rate(4e9, baseline=5e9)), "")


def test_programs_get_every_result_and_only_what_was_told():
    told = json.loads(output.as_json(MIXED, ""))
    assert (told["accepted"], told["simulated"], len(told["results"])) == (False, None, 8)
    assert told["results"][0] == {
        "check": "PCIe",
        "device": "GPU 0",
        "verdict": "pass",
        "measured": "5 x16",
        "wanted": "5 x16",
    }


def test_pipelines_get_junit_that_any_reader_of_xml_takes():
    odd = Result("storage write", "md0", "fail", why='fio: "<&>" \x00\x1b ' + chr(0xD800))
    suite = ET.fromstring(output.junit(run(*MIXED.results, odd), "node-7"))
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped", "hostname")} == {
        "tests": "9",
        "failures": "2",
        "skipped": "1",
        "hostname": "node-7",
    }
    cases = {case.get("name"): case for case in suite}
    assert cases["PCIe GPU 3"].find("failure") is None
    assert "8 of 16 lanes" in cases["PCIe GPU 3"].find("system-out").text
    assert cases["NCCL all-reduce"].find("skipped").get("message") == "one GPU only"
    assert suite[-1].find("failure").get("message") == 'fio: "<&>" ?? ?'
