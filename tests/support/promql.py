"""Which labels a PromQL expression's series carry, and whether its joins can be ambiguous, told without any series.

promtool accepts a metric that does not exist and a join that never matches. The expression's tree comes from
promql-parser, GreptimeTeam's parser in Rust: Prometheus' own has no Python form, and only promtool 3 prints a tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import promql_parser as tree

SCRAPED = frozenset({"cluster", "job", "instance"})
_SETS = ("and", "or", "unless")
_KEPT_BY = ("topk", "bottomk", "limitk", "limit_ratio")
_PLAIN = ("vector", "time", "pi")


class Wrong(Exception):
    """What no series can be found by, or what Prometheus would refuse when there are two of a kind."""


@dataclass(frozen=True, slots=True)
class Vector:
    labels: frozenset[str]
    varying: frozenset[str]  # those by which two series of it can differ
    fixed: frozenset[str] = frozenset()  # those with one value, by a matcher

    def only(self, labels: frozenset[str]) -> Vector:
        kept = self.labels & labels
        # What describes a label that is dropped differs by itself from then on.
        varying = self.varying if self.varying <= kept else kept - self.fixed
        return Vector(kept, varying, self.fixed & kept)


Lookup = Callable[[str], Vector]


def labels_of(text: str, metric: Lookup) -> Vector | None:
    """None for a scalar. `metric` raises Wrong for a name that is not known."""
    return _Reading(metric).read(tree.parse(text))


def names_in(text: str) -> set[str]:
    """Every metric that the expression names."""
    found: set[str] = set()
    walk(text, lambda node: found.update(_names(node)) if isinstance(node, tree.VectorSelector) else None)
    return found


def walk(text: str, visit: Callable[[tree.Expr], object]) -> None:
    def see(node: tree.Expr) -> None:
        visit(node)

    tree.walk(tree.parse(text), see)


def _names(selector: tree.VectorSelector) -> list[str]:
    if selector.name:
        return [selector.name]
    named = [matcher for matcher in selector.matchers.matchers if matcher.name == "__name__"]
    if len(named) != 1:
        raise Wrong(f"{selector}: names no metric")
    return named[0].value.split("|")


class _Reading:
    def __init__(self, metric: Lookup) -> None:
        self._metric = metric

    def read(self, node: tree.Expr) -> Vector | None:
        if isinstance(node, (tree.NumberLiteral, tree.StringLiteral)):
            return None
        if isinstance(node, (tree.ParenExpr, tree.UnaryExpr, tree.SubqueryExpr)):
            return self.read(node.expr)
        if isinstance(node, tree.MatrixSelector):
            return self.read(node.vector_selector)
        by_kind: Mapping[type, Callable[..., Vector | None]] = {
            tree.VectorSelector: self._selector,
            tree.Call: self._call,
            tree.AggregateExpr: self._aggregate,
            tree.BinaryExpr: self._binary,
        }
        return by_kind[type(node)](node)

    def _vector(self, node: tree.Expr) -> Vector:
        found = self.read(node)
        if found is None:
            raise Wrong(f"{node}: a vector is needed")
        return found

    def _selector(self, node: tree.VectorSelector) -> Vector:
        labels: frozenset[str] = frozenset()
        varying: frozenset[str] = frozenset()
        fixed: frozenset[str] = frozenset()
        for name in _names(node):
            found = self._metric(name)
            labels, varying = labels | found.labels, varying | found.varying
        for matcher in node.matchers.matchers:
            if matcher.name == "__name__":
                varying |= {"__name__"}
            elif matcher.name not in labels:
                raise Wrong(f"{node}: no label {matcher.name}, only {', '.join(sorted(labels))}")
            elif matcher.op == tree.MatchOp.Equal:
                fixed |= {matcher.name}
        return Vector(labels, varying - fixed, fixed)

    def _call(self, node: tree.Call) -> Vector | None:
        name = node.func.name
        if name in _PLAIN or name == "scalar":
            return Vector(frozenset(), frozenset()) if name == "vector" else None
        if name == "histogram_quantile":
            found = self._vector(node.args[1])
            return found.only(found.labels - {"le"})
        found = self._vector(node.args[0])
        if name == "label_join":
            target, sources = node.args[1].val, frozenset(each.val for each in node.args[3:])
            if sources - found.labels:
                raise Wrong(f"{node}: no label {', '.join(sorted(sources - found.labels))}")
            varies = found.varying | {target} if sources & found.varying else found.varying - {target}
            return Vector(found.labels | {target}, varies, found.fixed - {target})
        if name != "label_replace":
            return found
        target, source = node.args[1].val, node.args[3].val
        if source and source not in found.labels:
            raise Wrong(f"{node}: no label {source}")
        varies = found.varying | {target} if source in found.varying else found.varying - {target}
        # What it was copied from tells no more apart than the copy does.
        return Vector(found.labels | {target}, varies - {source} if source else varies, found.fixed - {target})

    def _aggregate(self, node: tree.AggregateExpr) -> Vector:
        found = self._vector(node.expr)
        if str(node.op) in _KEPT_BY:
            one = isinstance(node.param, tree.NumberLiteral) and node.param.val == 1 and node.modifier
            if one and node.modifier.type == tree.AggModifierType.By:
                return replace(found, varying=found.varying & frozenset(node.modifier.labels))
            return found
        if node.modifier is None:
            return Vector(frozenset(), frozenset())
        labels = frozenset(node.modifier.labels)
        unknown = labels - found.labels
        if unknown:
            raise Wrong(f"{node}: no label {', '.join(sorted(unknown))} to aggregate by")
        by = node.modifier.type == tree.AggModifierType.By
        return found.only(labels if by else found.labels - labels)

    def _binary(self, node: tree.BinaryExpr) -> Vector | None:
        left, right = self.read(node.lhs), self.read(node.rhs)
        if left is None or right is None:
            return right if left is None else left
        modifier = node.modifier
        matching = modifier.matching if modifier else None
        if matching is None:
            used = left.labels
            if left.labels != right.labels and str(node.op) != "or":
                raise Wrong(f"{node}: never matches, {sorted(left.labels ^ right.labels)} are on one side only")
        else:
            listed = frozenset(matching.labels)
            if matching.type == tree.LabelModifierType.Include:
                used = listed
                if listed - left.labels or listed - right.labels:
                    raise Wrong(f"{node}: {sorted(listed - (left.labels & right.labels))} are not on both sides")
            else:
                used = left.labels - listed
                if used != right.labels - listed:
                    raise Wrong(f"{node}: never matches")
        if str(node.op) in _SETS:
            if str(node.op) != "or":
                return left
            return Vector(left.labels | right.labels, left.varying | right.varying, left.fixed & right.fixed)
        card = modifier.card if modifier else tree.VectorMatchCardinality.OneToOne
        many, one = (right, left) if card == tree.VectorMatchCardinality.OneToMany else (left, right)
        self._unique(node, one, used)
        if card == tree.VectorMatchCardinality.OneToOne:
            self._unique(node, many, used)
            return many.only(used) if matching is not None else many
        added = frozenset(modifier.group_labels or ())
        if added - one.labels:
            raise Wrong(f"{node}: no label {sorted(added - one.labels)} to take over")
        return replace(many, labels=many.labels | added)

    def _unique(self, node: tree.BinaryExpr, side: Vector, used: frozenset[str]) -> None:
        if side.varying - used:
            raise Wrong(f"{node}: several series can match, they differ by {sorted(side.varying - used)}")
