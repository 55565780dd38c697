"""The few kinds of panel that all dashboards are made of; those with rows and columns are in kit.tables.

Every panel says in its description what good looks like and, without data, why that may be.
"""

from __future__ import annotations

import itertools
import string
import warnings
from collections.abc import Mapping, Sequence

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # dashboards of schema 2 load in Grafana 12 only
    from grafana_foundation_sdk.builders import bargauge, common, dashboard, stat, statetimeline, timeseries
    from grafana_foundation_sdk.builders import text as texts
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import text as text_models

from kit.parts import (
    ACT,
    FINE,
    GOOD,
    PLAIN,
    WITHOUT_DATA,
    Line,
    Placed,
    Step,
    dressed,
    fixed,
    mapping,
    now,
    over_time,
    stepped,
    thresholds,
)

# GPUs, drives, ports and hosts have the colour of their number's last digit on every page. No colour is one that means
# good, watch or act.
_NUMBERED = r"/^(?:GPU |nvme|mlx5_|md)\d*{0}(?:\D|$)|^(?!nvme).*[-a-z.]\d*{0}(?::\d+)?(?: |$)/"
# Other names go by their length: Grafana's palettes have red in fifth place, and shades alone are hard to tell apart.
_AS_LONG = "/^(?:.{{10}})*.{{{0}}}$/"
_OF_NUMBERS = ("GPU {{gpu}}", "{{device}}", "{{instance}}", "{{peer}}")
_COLOURS = (
    "blue", "dark-yellow", "purple", "#2ca6a4", "#e377c2", "#8d6e4f", "light-blue", "#9a9b2f", "dark-purple", "#7b8ca3",
)  # fmt: skip


_WORD_SIZE = 30.0


def answer(
    title: str,
    expression: str,
    *,
    why: str,
    unit: str = "short",
    steps: Sequence[Step] = ((None, PLAIN),),
    states: Mapping[str, tuple[str, str]] | None = None,
    empty: str = WITHOUT_DATA,
    decimals: int | None = None,
    width: int = 4,
    legend: str = "",
    limit: str = "",
) -> Placed:
    """One figure that answers one question; with `legend` a word, from a label. `limit`: a query for what it may be at
    most, above which someone must act."""
    panel = stat.Panel()
    if limit:
        panel = panel.with_target(now(f"({expression}) <= scalar({limit})", legend, "A"))
        panel = panel.with_target(now(f"({expression}) > scalar({limit})", legend, "B"))
    else:
        panel = panel.with_target(now(expression, legend))
    panel = (
        dressed(panel, title, why, unit, empty, decimals)
        .thresholds(thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
        .graph_mode(options.BigValueGraphMode.NONE)
        .color_mode(options.BigValueColorMode.VALUE)
        .text_mode(options.BigValueTextMode.NAME if legend else options.BigValueTextMode.AUTO)
        .justify_mode(options.BigValueJustifyMode.AUTO)
    )
    if legend:  # as large as fits is measured too large for some words
        panel = panel.text(common.VizTextDisplayOptions().value_size(_WORD_SIZE))
    if limit:
        panel = panel.override_by_query("A", [fixed(GOOD)]).override_by_query("B", [fixed(ACT)])
    if states:
        panel = panel.mappings([mapping(states)])
    return Placed(panel, width)


def timeline(
    title: str,
    lines: Sequence[Line],
    *,
    why: str,
    unit: str,
    empty: str = WITHOUT_DATA,
    width: int = 8,
    least: float | None = 0,
    most: float | None = None,
    stacked: bool = False,
    colours: Mapping[str, str] | None = None,
    table_legend: bool = False,
    decimals: int | None = None,
    sparse: bool = False,
) -> Placed:
    """Measurements over time, the first before all dashed ones; targets and limits dashed. `sparse`: some series have
    single points, which are drawn."""
    panel = timeseries.Panel()
    for letter, line in zip(string.ascii_uppercase, lines, strict=False):
        expression = _beside(line, lines[0]) if line.dashed else line.expression
        panel = panel.with_target(over_time(expression, line.legend, letter))
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
        dressed(panel, title, why, unit, empty, decimals)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.SHADES).fixed_color(_COLOURS[0]))
        .draw_style(options.GraphDrawStyle.LINE)
        .line_width(0 if stacked else 1)
        .fill_opacity(70 if stacked else 0)
        .show_points(options.VisibilityMode.ALWAYS if sparse else options.VisibilityMode.NEVER)
        .point_size(4)
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
    numbered = any(line.legend in _OF_NUMBERS for line in lines)
    if any("{{" in line.legend for line in lines if not line.dashed):
        for index, colour in enumerate(_COLOURS):
            pattern, mode = (_NUMBERED, "fixed") if numbered else (_AS_LONG, "shades")
            panel = panel.override_by_regexp(pattern.format(index), [fixed(colour, mode)])
    for letter, line, colour in zip(string.ascii_uppercase, lines, itertools.cycle(_COLOURS), strict=False):
        properties = []
        if line.dashed:
            properties += [
                models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                models.DynamicConfigValue("custom.fillOpacity", 0),
                models.DynamicConfigValue("custom.lineWidth", 1),
                models.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "B"}),
                fixed(line.colour or "text"),
            ]
        elif line.colour:
            properties.append(fixed(line.colour))
        elif "{{" not in line.legend:
            properties.append(fixed(colour))
        elif numbered and line.legend not in _OF_NUMBERS:
            properties.append(fixed(colour, "shades"))
        if properties:
            panel = panel.override_by_query(letter, properties)
    for name, colour in (colours or {}).items():
        panel = panel.override_by_name(name, [fixed(colour)])
    return Placed(panel, width)


def _beside(line: Line, measured: Line) -> str:
    """A target only where there is something to hold against it, anywhere in the time shown: a panel says why it is
    empty when it is."""
    return f"({line.expression}) and on () present_over_time(({measured.expression})[$__range:$__interval] @ end())"


def bars(
    title: str,
    lines: Sequence[Line],
    *,
    why: str,
    unit: str = "percentunit",
    steps: Sequence[Step] = ((None, FINE),),
    least: float = 0,
    most: float | None = 1,
    empty: str = WITHOUT_DATA,
    width: int = 8,
    decimals: int | None = None,
) -> Placed:
    """Figures of one kind side by side, each as a bar."""
    panel = bargauge.Panel()
    for letter, line in zip(string.ascii_uppercase, lines, strict=False):
        panel = panel.with_target(now(line.expression, line.legend, letter))
    panel = (
        dressed(panel, title, why, unit, empty, decimals)
        .thresholds(thresholds(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .min(least)
        .orientation(options.VizOrientation.HORIZONTAL)
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .value_mode(options.BarGaugeValueMode.TEXT)
        .show_unfilled(True)
        # Grafana measures names at no less than this size and cuts what is drawn larger.
        .text(common.VizTextDisplayOptions().title_size(12).value_size(18))
        .sizing(options.BarGaugeSizing.MANUAL)
        .max_viz_height(60)
        .name_placement(options.BarGaugeNamePlacement.LEFT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    )
    if most is not None:
        panel = panel.max(most)
    for letter, line in zip(string.ascii_uppercase, lines, strict=False):
        if line.steps:
            panel = panel.override_by_query(letter, [stepped(line.steps)])
        if line.colour:
            panel = panel.override_by_query(letter, [fixed(line.colour)])
    return Placed(panel, width)


def states(
    title: str,
    line: Line,
    *,
    why: str,
    shown: Mapping[str, tuple[str, str]],
    empty: str = WITHOUT_DATA,
    width: int = 24,
) -> Placed:
    """Which state each thing was in, over time. `shown`: value -> text, colour."""
    panel = statetimeline.Panel().with_target(over_time(line.expression, line.legend, "A"))
    panel = (
        dressed(panel, title, why, "short", empty, None)
        .mappings([mapping(shown)])
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


def words(content: str, *, title: str = "", width: int = 24) -> Placed:
    panel = texts.Panel().title(title).mode(text_models.TextMode.MARKDOWN).content(content).transparent(not title)
    return Placed(panel, width)
