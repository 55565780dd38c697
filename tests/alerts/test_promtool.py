"""promtool on the rules: they load, and every alert fires on the failing side and keeps quiet on the healthy one.

Runs with each promtool named in GPUHOST_PROMTOOLS (separated by colons), else with the one in PATH.
"""

from __future__ import annotations

import os
from copy import deepcopy

import pytest
import yaml
from support.promql import names_in
from support.promtool import ABSENT, CASES, PROMTOOLS, promtool, seconds
from support.rules import RULE_FILES, TEST_FILES, alerts, load, queries, recordings, rules

FAILING, HEALTHY = "gpu-7:19400", "gpu-8:19400"
_OF_RELEASE = 'host:gpuhost_quiet:bool{reason="boot"}'

pytestmark = pytest.mark.skipif(not PROMTOOLS, reason=ABSENT)

BY_NAME = {rule.name: rule for rule in alerts()}
each_alert = pytest.mark.parametrize("name", sorted(BY_NAME))
each_promtool = pytest.mark.parametrize("tool", PROMTOOLS)


def with_tests(name, tests, target):
    """A test file with these tests of one alert, and of the rules those only that it needs: a day passes ten times
    quicker so.
    """
    document = load(CASES[name][0])
    groups = []
    for file in document["rule_files"]:
        for group in load(os.path.join(os.path.dirname(CASES[name][0]), file))["groups"]:
            rules = [body for body in group["rules"] if (body.get("record") or body["alert"]) in needed(name)]
            groups += [{**group, "rules": rules}] if rules else []
    rules = target.with_suffix(".rules.yml")
    rules.write_text(yaml.safe_dump({"groups": groups}))
    document |= {"rule_files": [str(rules)], "tests": tests}
    document["group_eval_order"] = [group["name"] for group in groups]
    target.write_text(yaml.safe_dump(document))
    return str(target)


def needed(name):
    """The alert, and what is recorded for it or for its annotations."""
    found, left = set(), {name}
    while left:
        one = left.pop()
        found.add(one)
        for rule in (rule for rule in rules() if rule.name == one):
            asked = [query for text in rule.body.get("annotations", {}).values() for query in queries(text)]
            left |= set().union(*(names_in(text) for text in (rule.expr, *asked))) - found
    return found


@each_promtool
def test_the_rules_load(tool):
    code, output = promtool(tool, "check", "rules", *RULE_FILES)
    assert code == 0, output
    assert "SUCCESS" in output


@each_promtool
@pytest.mark.parametrize("path", TEST_FILES, ids=os.path.basename)
def test_the_rules_pass_their_tests(tool, path):
    code, output = promtool(tool, "test", "rules", path)
    assert code == 0, output


@each_alert
def test_an_alert_is_tested_pending_firing_and_healthy(name):
    _, tests = CASES[name]
    rule = BY_NAME[name]
    fired = False
    for test in tests:
        pending, firing = None, False
        for case in sorted(test["alert_rule_test"], key=lambda case: seconds(case["eval_time"])):
            at = seconds(case["eval_time"])
            if not case["exp_alerts"]:
                pending, firing = at, False
                continue
            assert pending is not None, "the time before it fires is not tested"
            assert firing or at - pending <= seconds(test["interval"]), "pending is tested long before it fires"
            fired = firing = True
            assert at >= seconds(rule.body["for"])
            assert {alert["exp_labels"]["instance"] for alert in case["exp_alerts"]} == {FAILING}
            for alert in case["exp_alerts"]:
                assert set(alert["exp_annotations"]) == {"summary", "dashboard_url", "runbook_url"}
    assert fired
    given = {
        host: {
            (entry["series"].replace(host, "HOST"), str(entry["values"]))
            for test in tests
            for entry in test["input_series"]
            if host in entry["series"]
        }
        for host in (FAILING, HEALTHY)
    }
    assert given[HEALTHY], "nothing stands for a healthy host"
    assert given[FAILING] != given[HEALTHY], "the failing host is the healthy one"


@each_alert
def test_nothing_fires_in_the_first_minutes_after_boot(name, tmp_path):
    if "host:gpuhost_quiet:bool" not in BY_NAME[name].expr:
        pytest.skip("says that the host says nothing")
    _quiet_with(name, tmp_path, lambda at: ("gpuhost_boot_time_seconds", f"{at - 599}x10"))


@each_alert
def test_a_release_silences_what_a_reset_touches(name, tmp_path):
    expr = BY_NAME[name].expr
    if "host:gpuhost_quiet:bool" not in expr or _OF_RELEASE in expr:
        pytest.skip("a release does not touch it")
    _quiet_with(name, tmp_path, lambda _: ('gpuhost_nvml_state{state="released"}', "1x2000"))


def _quiet_with(name, tmp_path, gate):
    """The alert's own tests, and one series more that opens the gate: what fired does not."""
    _, tests = CASES[name]
    changed = []
    for test in tests:
        for case in test["alert_rule_test"]:
            if not case["exp_alerts"]:
                continue
            at = seconds(case["eval_time"])
            series, values = gate(at)
            series = (
                series.replace("{", "{" + f'instance="{FAILING}",job="gpuhost",')
                if "{" in series
                else (f'{series}{{instance="{FAILING}",job="gpuhost"}}')
            )
            copy = deepcopy(test)
            copy["input_series"].append({"series": series, "values": values.replace("x10", "x2000")})
            copy["alert_rule_test"] = [{**case, "exp_alerts": []}]
            changed.append(copy)
    assert changed
    code, output = promtool(PROMTOOLS[0], "test", "rules", with_tests(name, changed, tmp_path / "quiet.yml"))
    assert code == 0, output


@each_alert
def test_ten_minutes_after_boot_it_fires_as_ever(name, tmp_path):
    if "host:gpuhost_quiet:bool" not in BY_NAME[name].expr:
        pytest.skip("says that the host says nothing")
    _, tests = CASES[name]
    changed = deepcopy(tests)
    for test in changed:
        test["input_series"].append(
            {"series": f'gpuhost_boot_time_seconds{{instance="{FAILING}",job="gpuhost"}}', "values": "-600x2000"}
        )
    code, output = promtool(PROMTOOLS[0], "test", "rules", with_tests(name, changed, tmp_path / "booted.yml"))
    assert code == 0, output


def test_every_recorded_series_is_tested():
    tested = set()
    for path in TEST_FILES:
        for test in load(path)["tests"]:
            for case in test.get("promql_expr_test", ()):
                if case["exp_samples"]:
                    tested |= {rule.name for rule in recordings() if rule.name in case["expr"]}
    assert tested == {rule.name for rule in recordings()}
