"""Panels with rows and columns."""

from __future__ import annotations

import string
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # dashboards of schema 2 load in Grafana 12 only
    from grafana_foundation_sdk.builders import common, table
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models

from kit.parts import WITHOUT_DATA, Placed, Step, dressed, mapping, now, stepped, transformed


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


def listing(
    title: str,
    columns: Sequence[Column],
    *,
    why: str,
    sort: str = "",
    descending: bool = True,
    empty: str = WITHOUT_DATA,
    width: int = 24,
    most: int | None = None,
) -> Placed:
    """A table with a row for each set of labels that the columns' queries share; by `sort`, the title of a column
    that may be hidden, the first `most` of them."""
    panel = table.Panel()
    measured = [column for column in columns if column.expression]
    renamed, order, hidden = {}, {}, {"Time": True}
    for letter, column in zip(string.ascii_uppercase, measured, strict=False):
        panel = panel.with_target(now(column.expression, "", letter, as_table=True))
        value = "Value" if len(measured) == 1 else f"Value #{letter}"
        renamed[value] = column.title
        hidden |= {value: True} if column.hidden else {}
    renamed |= {column.label: column.title for column in columns if column.label}
    sources = {title: source for source, title in renamed.items()}
    for index, column in enumerate(columns):
        order[sources[column.title]] = index
    panel = dressed(panel, title, why, "short", empty, None).cell_height(options.TableCellHeight.SM).min_width(60)
    if len(measured) > 1:
        panel = panel.with_transformation(transformed("merge", {}))
    if most is not None:
        order_by = [{"field": sources[sort], "desc": descending}]
        panel = panel.with_transformation(transformed("sortBy", {"fields": {}, "sort": order_by}))
        panel = panel.with_transformation(transformed("limit", {"limitField": most}))
    panel = panel.with_transformation(
        transformed(
            "organize",
            {
                "excludeByName": hidden,
                "indexByName": order,
                "renameByName": renamed,
                "includeByName": {},
            },
        )
    )
    for column in columns:
        panel = panel.override_by_name(column.title, _cell(column))
    if sort and not any(column.hidden and column.title == sort for column in columns):
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
    empty: str = WITHOUT_DATA,
    width: int = 24,
    column_width: int = 62,
    corner_width: int = 70,
) -> Placed:
    """A table with a coloured cell for each pair of two labels' values; the columns' are numbers."""
    panel = (
        dressed(table.Panel(), title, why, "short", empty, None)
        .with_target(now(expression, "", "A", as_table=True))
        .with_transformation(
            transformed(
                "convertFieldType",
                {"fields": {}, "conversions": [{"targetField": column, "destinationType": "number"}]},
            )
        )
        .with_transformation(transformed("sortBy", {"fields": {}, "sort": [{"field": row}]}))
        .with_transformation(transformed("sortBy", {"fields": {}, "sort": [{"field": column}]}))
        .with_transformation(
            transformed(
                "groupingToMatrix",
                {"columnField": column, "rowField": row, "valueField": "Value", "emptyValue": "null"},
            )
        )
        .with_transformation(
            transformed(
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
                models.DynamicConfigValue("mappings", [mapping(shown)]),
                models.DynamicConfigValue("noValue", ""),
                models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "transparent"}),
                models.DynamicConfigValue("custom.cellOptions", {"type": "color-background", "mode": "basic"}),
                models.DynamicConfigValue("custom.width", column_width),
                models.DynamicConfigValue("custom.align", "center"),
            ],
        )
    )
    return Placed(panel, width)


def _cell(column: Column) -> list[models.DynamicConfigValue]:
    value = models.DynamicConfigValue
    properties = [value("noValue", "-" if column.expression else "")]
    if column.expression:
        properties.append(value("unit", column.unit))
    if column.decimals is not None:
        properties.append(value("decimals", column.decimals))
    if column.steps:
        properties += [stepped(column.steps), value("color", {"mode": "thresholds"})]
    if column.states:
        properties.append(value("mappings", [mapping(column.states)]))
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
