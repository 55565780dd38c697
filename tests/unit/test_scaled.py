"""Rules whose durations are divided: all of them, by the constant, and nothing else."""

from __future__ import annotations

from datetime import timedelta

import promql_parser as tree
import pytest
from support.rules import ALERTS, RULE_FILES, load, queries, rules
from support.scaled import duration, expression, scaled

ALERTMANAGER = f"{ALERTS}/alertmanager.yml"


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("rate(x[5m])", "rate(x[25000ms])"),
        ("x offset 1h", "x offset 300000ms"),
        ("max_over_time(x[1w:1h] offset 1m30s)", "max_over_time(x[50400000ms:300000ms] offset 7500ms)"),
        ("max_over_time(x[1h:])", "max_over_time(x[300000ms:])"),
        ("time() - x < 600", "time() - x < 600"),
        ("time() - gpuhost_boot_time_seconds < bool 600", "time() - gpuhost_boot_time_seconds < bool 50"),
        ('sum(increase(x_seconds_total{a="b"}[1h])) > 60', 'sum(increase(x_seconds_total{a="b"}[300000ms])) > 5'),
        ("increase(x_errors_total[1h]) > 60", "increase(x_errors_total[300000ms]) > 60"),
        ("rate(x_seconds_total[5m]) > 0.05", "rate(x_seconds_total[25000ms]) > 0.05"),
        ('label_replace(x, "m", "$1", "mount", "(.+)[0-9]")', 'label_replace(x, "m", "$1", "mount", "(.+)[0-9]")'),
        ('{{ with printf "x[1h] > 60" | query }} in 1h', '{{ with printf "x[300000ms] > 60" | query }} in 1h'),
    ],
)  # fmt: skip
def test_only_durations_are_divided(text, made):
    assert expression(text, 12) == made


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "1y", "1s"])
def test_what_cannot_be_divided_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        duration(text, 7000)


def _durations(text):
    found = []

    def see(node):
        values = (getattr(node, name, None) for name in ("range", "step", "offset"))
        found.extend(value for value in values if isinstance(value, timedelta))

    tree.walk(tree.parse(text), see)
    return found


@pytest.mark.parametrize("path", RULE_FILES)
def test_every_duration_of_every_rule_is_divided(path):
    """As Prometheus' grammar finds them, in expressions and in what annotations ask."""
    before, after = load(path), scaled(load(path), 12)
    for group, hurried in zip(before["groups"], after["groups"], strict=True):
        for rule, quick in zip(group["rules"], hurried["rules"], strict=True):
            pairs = [(rule["expr"], quick["expr"])]
            for name, text in rule.get("annotations", {}).items():
                pairs += zip(queries(text), queries(quick["annotations"][name]), strict=True)
            for old, new in pairs:
                assert [each / 12 for each in _durations(old)] == _durations(new), old


def _numbers(text):
    found = []
    tree.walk(tree.parse(text), lambda node: found.append(node.val) if isinstance(node, tree.NumberLiteral) else None)
    return found


def test_of_all_numbers_only_seconds_within_a_range_and_since_an_event_are_divided():
    changed = []
    for rule in rules():
        before, after = _numbers(rule.expr), _numbers(expression(rule.expr, 12))
        changed += [(rule.name, old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert sorted(changed) == [
        ("GpuhostArrayMemberSlow", 60, 5),
        ("GpuhostCheckpointSlow", 3600, 300),
        ("GpuhostDriveHot", 60, 5),
        ("device:gpuhost_storage_delivered_bytes_per_second:ratio_increase1h", 30, 2.5),
        ("host:gpuhost_held_time:ratio_increase1h", 360, 30),
        ("host:gpuhost_quiet:bool", 600, 50),
    ]


def test_every_wait_of_alertmanager_is_divided():
    before, after = load(ALERTMANAGER), scaled(load(ALERTMANAGER), 60)
    assert (before["route"]["group_wait"], after["route"]["group_wait"]) == ("1m", "1000ms")
    assert [route["repeat_interval"] for route in after["route"]["routes"][:2]] == ["240000ms"] * 2
    assert after["inhibit_rules"] == before["inhibit_rules"]
    assert after["receivers"] == before["receivers"]
