"""The few kinds of panel that all dashboards are made of, over grafana-foundation-sdk's builders.

Every panel says in its description what good looks like and, without data, why that may be.
"""

from __future__ import annotations

import string
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # dashboards of schema 2 load in Grafana 12 only
    from grafana_foundation_sdk.builders import (
        bargauge,
        common,
        dashboard,
        prometheus,
        stat,
        statetimeline,
        table,
        timeseries,
    )
    from grafana_foundation_sdk.builders import text as texts
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as queries
from grafana_foundation_sdk.models import text as text_models

SOURCE = options.DataSourceRef(type_val="prometheus", uid="${datasource}")
GOOD, FINE, WATCH, ACT, PLAIN = "green", "blue", "orange", "red", "text"
Step = tuple[float | None, str]  # from this value on, this colour; None: from the beginning

_WITHOUT_DATA = "No data"
# GPUs, drives, ports and hosts have the colour of their number on every page; none is red, which is for what someone
# must act on.
_NUMBERED = r"/^(?:GPU |nvme|mlx5_|md){0}(?:\D|$)|[-a-z.]\d*{0}(?::\d+)?(?: |$)/"
_COLOURS = (
    "blue", "orange", "purple", "green", "yellow", "super-light-blue", "dark-orange", "dark-purple", "dark-green",
    "light-blue",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A query and what its series are called; {{label}} takes a label's value."""

    expression: str
    legend: str = ""
    dashed: bool = False  # a target or a limit, not a measurement
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: a query with one series a row, or with `label` a label of the rows."""

    title: str
    expression: str = ""
    unit: str = "short"
    label: str = ""
    decimals: int | None = None
    steps: Sequence[Step] = ()
    states: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # value -> text, colour
    bar: tuple[float, float] | None = None  # drawn between these
    link: str = ""
    width: int | None = None
    hidden: bool = False  # only its labels are of interest


@dataclass(frozen=True, slots=True)
class Placed:
    """A panel's builder with its width of 24."""

    builder: Any
    width: int


def below(target: float) -> tuple[Step, ...]:
    """Steps of a figure that someone must act on below its target, and that nobody must when it is not known."""
    return ((None, PLAIN), (0, ACT), (target, GOOD))


def answer(
    title: str,
    expression: str,
    *,
    why: str,
    unit: str = "short",
    steps: Sequence[Step] = ((None, PLAIN),),
    states: Mapping[str, tuple[str, str]] | None = None,
    empty: str = _WITHOUT_DATA,
    decimals: int | None = None,
    width: int = 4,
    history: bool = False,
    legend: str = "",
) -> Placed:
    """One figure that answers one question; with `legend` a word, from a label."""
    panel = stat.Panel().with_target(_instant(expression, legend) if not history else _range(expression, legend, "A"))
    panel = (
        _common(panel, title, why, unit, empty, decimals)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
        .graph_mode(options.BigValueGraphMode.AREA if history else options.BigValueGraphMode.NONE)
        .color_mode(options.BigValueColorMode.VALUE)
        .text_mode(options.BigValueTextMode.NAME if legend else options.BigValueTextMode.AUTO)
        .justify_mode(options.BigValueJustifyMode.AUTO)
    )
    if states:
        panel = panel.mappings([_mapping(states)])
    return Placed(panel, width)


def timeline(
    title: str,
    lines: Sequence[Line],
    *,
    why: str,
    unit: str = "short",
    empty: str = _WITHOUT_DATA,
    width: int = 8,
    least: float | None = 0,
    most: float | None = None,
    stacked: bool = False,
    colours: Mapping[str, str] | None = None,
    table_legend: bool = False,
    decimals: int | None = None,
) -> Placed:
    """Measurements over time; targets and limits dashed."""
    panel = timeseries.Panel()
    for letter, line in zip(string.ascii_uppercase, lines, strict=False):
        panel = panel.with_target(_range(line.expression, line.legend, letter))
    legend = common.VizLegendOptions().show_legend(True).placement(options.LegendPlacement.BOTTOM)
    if table_legend:
        legend = (
            legend.display_mode(options.LegendDisplayMode.TABLE)
            .placement(options.LegendPlacement.RIGHT)
            .calcs(["lastNotNull", "max"])
        )
    else:
        legend = legend.display_mode(options.LegendDisplayMode.LIST).calcs([])
    panel = (
        _common(panel, title, why, unit, empty, decimals)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
        .draw_style(options.GraphDrawStyle.LINE)
        .line_width(0 if stacked else 1)
        .fill_opacity(70 if stacked else 0)
        .show_points(options.VisibilityMode.NEVER)
        .span_nulls(False)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if decimals == 0:
        panel = panel.axis_soft_max(1)
    if least is not None:
        panel = panel.min(least)
    if most is not None:
        panel = panel.max(most)
    if any(line.legend in ("GPU {{gpu}}", "{{device}}", "{{instance}}") for line in lines):
        for index, colour in enumerate(_COLOURS):
            panel = panel.override_by_regexp(_NUMBERED.format(index), [_fixed(colour)])
    for letter, line in zip(string.ascii_uppercase, lines, strict=False):
        properties = []
        if line.dashed:
            properties += [
                models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                models.DynamicConfigValue("custom.fillOpacity", 0),
                models.DynamicConfigValue("custom.lineWidth", 1),
                models.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "B"}),
                _fixed(line.colour or "text"),
            ]
        elif line.colour:
            properties.append(_fixed(line.colour))
        if properties:
            panel = panel.override_by_query(letter, properties)
    for name, colour in (colours or {}).items():
        panel = panel.override_by_name(name, [_fixed(colour)])
    return Placed(panel, width)


def bars(
    title: str,
    lines: Sequence[Line],
    *,
    why: str,
    unit: str = "percentunit",
    steps: Sequence[Step] = ((None, FINE),),
    least: float = 0,
    most: float | None = 1,
    empty: str = _WITHOUT_DATA,
    width: int = 8,
    decimals: int | None = None,
) -> Placed:
    """Figures of one kind side by side, each as a bar."""
    panel = bargauge.Panel()
    for letter, line in zip(string.ascii_uppercase, lines, strict=False):
        panel = panel.with_target(_instant(line.expression, line.legend, letter))
    panel = (
        _common(panel, title, why, unit, empty, decimals)
        .thresholds(_thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .min(least)
        .orientation(options.VizOrientation.HORIZONTAL)
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .value_mode(options.BarGaugeValueMode.TEXT)
        .show_unfilled(True)
        .text(common.VizTextDisplayOptions().title_size(14).value_size(18))
        .name_placement(options.BarGaugeNamePlacement.LEFT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    )
    if most is not None:
        panel = panel.max(most)
    return Placed(panel, width)


def states(
    title: str,
    line: Line,
    *,
    why: str,
    shown: Mapping[str, tuple[str, str]],
    empty: str = _WITHOUT_DATA,
    width: int = 24,
) -> Placed:
    """Which state each thing was in, over time. `shown`: value -> text, colour."""
    panel = statetimeline.Panel().with_target(_range(line.expression, line.legend, "A"))
    panel = (
        _common(panel, title, why, "short", empty, None)
        .mappings([_mapping(shown)])
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color(PLAIN))
        .show_value(options.VisibilityMode.NEVER)
        .row_height(0.8)
        .merge_values(True)
        .fill_opacity(80)
        .line_width(0)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
        )
    )
    return Placed(panel, width)


def listing(
    title: str,
    columns: Sequence[Column],
    *,
    why: str,
    sort: str = "",
    descending: bool = True,
    empty: str = _WITHOUT_DATA,
    width: int = 24,
    most: int | None = None,
) -> Placed:
    """A table with a row for each set of labels that the columns' queries share; by `sort` the first `most` of them."""
    panel = table.Panel()
    measured = [column for column in columns if column.expression]
    renamed, order, hidden = {}, {}, {"Time": True}
    for letter, column in zip(string.ascii_uppercase, measured, strict=False):
        panel = panel.with_target(_instant(column.expression, "", letter, as_table=True))
        value = "Value" if len(measured) == 1 else f"Value #{letter}"
        renamed[value] = column.title
        hidden |= {value: True} if column.hidden else {}
    renamed |= {column.label: column.title for column in columns if column.label}
    sources = {title: source for source, title in renamed.items()}
    for index, column in enumerate(columns):
        order[sources[column.title]] = index
    panel = _common(panel, title, why, "short", empty, None).cell_height(options.TableCellHeight.SM).min_width(60)
    if len(measured) > 1:
        panel = panel.with_transformation(_transformed("merge", {}))
    panel = panel.with_transformation(
        _transformed(
            "organize",
            {
                "excludeByName": hidden,
                "indexByName": order,
                "renameByName": renamed,
                "includeByName": {},
            },
        )
    )
    if most is not None:
        order_by = [{"field": sort, "desc": descending}]
        panel = panel.with_transformation(_transformed("sortBy", {"fields": {}, "sort": order_by}))
        panel = panel.with_transformation(_transformed("limit", {"limitField": most}))
    for column in columns:
        panel = panel.override_by_name(column.title, _cell(column))
    if sort:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(descending)])
    return Placed(panel, width)


def matrix(
    title: str,
    expression: str,
    *,
    row: str,
    column: str,
    why: str,
    shown: Mapping[str, tuple[str, str]],
    corner: str,
    empty: str = _WITHOUT_DATA,
    width: int = 24,
    column_width: int = 62,
    corner_width: int = 70,
) -> Placed:
    """A table with a coloured cell for each pair of two labels' values; the columns' are numbers."""
    panel = (
        _common(table.Panel(), title, why, "short", empty, None)
        .with_target(_instant(expression, "", "A", as_table=True))
        .with_transformation(
            _transformed(
                "convertFieldType",
                {"fields": {}, "conversions": [{"targetField": column, "destinationType": "number"}]},
            )
        )
        .with_transformation(_transformed("sortBy", {"fields": {}, "sort": [{"field": column}]}))
        .with_transformation(
            _transformed(
                "groupingToMatrix",
                {"columnField": column, "rowField": row, "valueField": "Value", "emptyValue": "null"},
            )
        )
        .with_transformation(
            _transformed(
                "organize",
                {
                    "excludeByName": {},
                    "includeByName": {},
                    "indexByName": {},
                    "renameByName": {f"{row}\\{column}": corner},
                },
            )
        )
        .cell_height(options.TableCellHeight.SM)
        .min_width(40)
        .override_by_name(corner, [models.DynamicConfigValue("custom.width", corner_width)])
        .override_by_regexp(
            f"/^(?!{corner}$)/",
            [
                models.DynamicConfigValue("mappings", [_mapping(shown)]),
                models.DynamicConfigValue("noValue", ""),
                models.DynamicConfigValue("custom.cellOptions", {"type": "color-background", "mode": "basic"}),
                models.DynamicConfigValue("custom.width", column_width),
                models.DynamicConfigValue("custom.align", "center"),
            ],
        )
    )
    return Placed(panel, width)


def words(content: str, *, title: str = "", width: int = 24) -> Placed:
    panel = texts.Panel().title(title).mode(text_models.TextMode.MARKDOWN).content(content).transparent(not title)
    return Placed(panel, width)


def _common(panel: Any, title: str, why: str, unit: str, empty: str, decimals: int | None) -> Any:
    panel = panel.title(title).description(why).datasource(SOURCE).unit(unit).no_value(empty)
    return panel if decimals is None else panel.decimals(decimals)


def _range(expression: str, legend: str, letter: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery().datasource(SOURCE).expr(_one_line(expression)).legend_format(legend or "__auto").range()
    ).ref_id(letter)


def _instant(expression: str, legend: str, letter: str = "A", *, as_table: bool = False) -> prometheus.Dataquery:
    query = prometheus.Dataquery().datasource(SOURCE).expr(_one_line(expression)).instant().ref_id(letter)
    if as_table:
        return query.format(queries.PromQueryFormat.TABLE)
    return query.legend_format(legend or "__auto")


def _one_line(expression: str) -> str:
    return " ".join(expression.split())


def _transformed(kind: str, settings: dict[str, object]) -> models.DataTransformerConfig:
    return models.DataTransformerConfig(id_val=kind, options=settings)


def _thresholds(steps: Sequence[Step]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=colour) for value, colour in steps])
    )


def _mapping(shown: Mapping[str, tuple[str, str]]) -> models.ValueMap:
    return models.ValueMap(
        options={
            value: models.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(shown.items())
        }
    )


def _fixed(colour: str) -> models.DynamicConfigValue:
    return models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})


def _cell(column: Column) -> list[models.DynamicConfigValue]:
    value = models.DynamicConfigValue
    properties = [value("noValue", "-" if column.expression else "")]
    if column.expression:
        properties.append(value("unit", column.unit))
    if column.decimals is not None:
        properties.append(value("decimals", column.decimals))
    if column.steps:
        steps = [{"value": at, "color": colour} for at, colour in column.steps]
        properties += [
            value("thresholds", {"mode": "absolute", "steps": steps}),
            value("color", {"mode": "thresholds"}),
        ]
    if column.states:
        properties.append(value("mappings", [_mapping(column.states)]))
    if column.bar:
        properties += [
            value("min", column.bar[0]),
            value("max", column.bar[1]),
            value("custom.cellOptions", {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}),
        ]
    elif column.steps or column.states:
        properties.append(value("custom.cellOptions", {"type": "color-text"}))
    if column.width:
        properties.append(value("custom.width", column.width))
    if column.link:
        properties.append(value("links", [{"title": "Open", "url": column.link}]))
    return properties
