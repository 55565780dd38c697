"""The tests of the alerts are tests: an expression or a `for` that is changed a little makes them fail."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import promql_parser as tree
import pytest
import yaml
from support.promtool import ABSENT, CASES, PROMTOOLS, promtool, seconds
from support.rules import ALERTS, alerts, load

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PROMTOOLS, reason=ABSENT)]
_GATE = "host:gpuhost_quiet:bool"


@dataclass(frozen=True, slots=True)
class Mutant:
    what: str
    expr: str
    wait: str


def mutants(rule):
    """Without the gate, which other tests try: each comparison turned round, each condition dropped, `for` changed."""
    expr, wait = rule.expr, rule.body["for"]
    found = [
        Mutant("waits less", expr, f"{seconds(wait) - 60}s"),
        Mutant("waits longer", expr, f"{seconds(wait) + 60}s"),
    ]
    nodes = []
    tree.walk(tree.parse(expr), lambda node: nodes.append(node) if isinstance(node, tree.BinaryExpr) else None)
    for node in nodes:
        operator = str(node.op)
        if _GATE in str(node.rhs):
            continue
        if operator in _REVERSED:
            found.append(Mutant(f"{operator} turned round", _with(expr, node, _REVERSED[operator]), wait))
        if operator in ("and", "unless", "or"):
            found.append(Mutant(f"without {operator} {node.rhs}", _replaced(expr, node, str(node.lhs)), wait))
    return found


_REVERSED = {">": "<", ">=": "<", "<": ">", "<=": ">", "==": "!=", "!=": "=="}


def _with(expr, node, operator):
    modifier = f" {node.modifier}" if node.modifier else ""
    return _replaced(expr, node, f"({node.lhs} {operator}{modifier} {node.rhs})")


def _replaced(expr, node, text):
    whole = str(tree.parse(expr))
    assert str(node) in whole
    return whole.replace(str(node), text, 1)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule.name)
def test_a_changed_rule_fails_its_tests(rule, tmp_path):
    path, tests = CASES[rule.name]
    rules = tmp_path / "rules"
    shutil.copytree(f"{ALERTS}/rules", rules)
    document = {**load(path), "tests": tests}
    document["rule_files"] = [f"rules/{os.path.basename(file)}" for file in document["rule_files"]]
    case = tmp_path / "case.yml"
    case.write_text(yaml.safe_dump(document))
    survived = []
    for mutant in mutants(rule):
        changed = load(f"{ALERTS}/rules/{rule.file}")
        for group in changed["groups"]:
            for body in group["rules"]:
                if body.get("alert") == rule.name:
                    body["expr"], body["for"] = mutant.expr, mutant.wait
        (rules / rule.file).write_text(yaml.safe_dump(changed))
        code, output = promtool(PROMTOOLS[0], "test", "rules", str(case))
        if code == 0:
            survived.append(mutant.what)
        else:
            assert f"alertname: {rule.name}, time:" in output, f"{mutant.what}: not a rule that promtool can test"
    assert survived == []
