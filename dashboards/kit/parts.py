"""What all kinds of panel are made of: words, colours and queries, over grafana-foundation-sdk's builders."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # dashboards of schema 2 load in Grafana 12 only
    from grafana_foundation_sdk.builders import dashboard, prometheus
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as queries

SOURCE = options.DataSourceRef(type_val="prometheus", uid="${datasource}")
GOOD, FINE, WATCH, ACT, PLAIN = "green", "blue", "orange", "red", "text"
Step = tuple[float | None, str]  # from this value on, this colour; None: from the beginning

WITHOUT_DATA = "No data"


@dataclass(frozen=True, slots=True)
class Line:
    """A query and what its series are called; {{label}} takes a label's value."""

    expression: str
    legend: str = ""
    dashed: bool = False  # a target or a limit, not a measurement
    colour: str | None = None
    steps: Sequence[Step] = ()  # of a bar, in place of its panel's


@dataclass(frozen=True, slots=True)
class Placed:
    """A panel's builder with its width of 24."""

    builder: Any
    width: int


def below(target: float, colour: str = ACT) -> tuple[Step, ...]:
    """Steps of a figure that someone must act on below its target, and that nobody must when it is not known."""
    return ((None, PLAIN), (0, colour), (target, GOOD))


def at_least(expression: str, least: str) -> str:
    """What is taken at full hours lags behind: of a day that has just begun it knows less than the last hour does."""
    return f"({expression} > {least} or {least})"


def dressed(panel: Any, title: str, why: str, unit: str, empty: str, decimals: int | None) -> Any:
    panel = panel.title(title).description(why).datasource(SOURCE).unit(unit).no_value(empty)
    return panel if decimals is None else panel.decimals(decimals)


def over_time(expression: str, legend: str, letter: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery().datasource(SOURCE).expr(_one_line(expression)).legend_format(legend or "__auto").range()
    ).ref_id(letter)


def now(expression: str, legend: str, letter: str = "A", *, as_table: bool = False) -> prometheus.Dataquery:
    query = prometheus.Dataquery().datasource(SOURCE).expr(_one_line(expression)).instant().ref_id(letter)
    if as_table:
        return query.format(queries.PromQueryFormat.TABLE)
    return query.legend_format(legend or "__auto")


def _one_line(expression: str) -> str:
    return " ".join(expression.split())


def transformed(kind: str, settings: dict[str, object]) -> models.DataTransformerConfig:
    return models.DataTransformerConfig(id_val=kind, options=settings)


def thresholds(steps: Sequence[Step]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=colour) for value, colour in steps])
    )


def mapping(shown: Mapping[str, tuple[str, str]]) -> models.ValueMap:
    return models.ValueMap(
        options={
            value: models.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(shown.items())
        }
    )


def fixed(colour: str, mode: str = "fixed") -> models.DynamicConfigValue:
    return models.DynamicConfigValue("color", {"mode": mode, "fixedColor": colour})


def stepped(steps: Sequence[Step]) -> models.DynamicConfigValue:
    shown = [{"value": at, "color": colour} for at, colour in steps]
    return models.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": shown})
