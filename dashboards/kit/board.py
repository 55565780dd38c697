"""A dashboard: rows of panels, the variables and links that all have, and annotations."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # dashboards of schema 2 load in Grafana 12 only
    from grafana_foundation_sdk.builders import dashboard, prometheus
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from kit.names import Names, Scope, read
from kit.parts import SOURCE, Placed

TAG = "gpuhost"
NAMES: Names = read()
FLEET = Scope(NAMES, ('cluster=~"$cluster"',))
HOST = Scope(NAMES, ('cluster=~"$cluster"', 'instance="$instance"'))
# A table's links: the same time and data source, the row's host. Without a column Cluster there is no such label, and
# var-cluster= selects just those series.
TO_HOST = (
    "/d/gpuhost-host?${__url_time_range}&${datasource:queryparam}"
    "&var-cluster=${__data.fields.Cluster}&var-instance=${__data.fields.Host}"
)


def fired(scope: Scope, severity: str) -> str:
    """This project's alerts that fire: the same Prometheus may have rules of others."""
    return scope("ALERTS", alertname="~Gpuhost.*", alertstate="firing", severity=severity)


def with_cluster(expression: str) -> str:
    """The same with a label host: `instance`, with the cluster before it where there is one."""
    joined = f'label_join({expression}, "host", " ", "cluster", "instance")'
    return f'label_replace({joined}, "host", "$1", "host", " ?(.*)")'


@dataclass(frozen=True, slots=True)
class Section:
    """Panels side by side, all of one height; `title` opens a new row of the page."""

    panels: Sequence[Placed]
    height: int = 8
    title: str = ""


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    label: str
    metric: str  # a selector
    values_of: str
    description: str


@dataclass(frozen=True, slots=True)
class Board:
    uid: str
    title: str
    description: str
    sections: Sequence[Section]
    of_one_host: bool = True
    variables: Sequence[Variable] = ()
    period: str = "now-1h"
    checkpoints: bool = False  # as annotations
    only: str = ""  # narrows annotations further, as in "and on (instance) …"

    def json(self) -> str:
        built = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.description)
            .tags([TAG])
            .timezone("browser")
            .editable()
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .time(self.period, "now")
            .refresh("30s")
            .with_variable(_datasource())
            .with_variable(_cluster())
            .link(_links())
            .annotations(self._annotations())
        )
        if self.of_one_host:
            built = built.with_variable(_query_variable(_INSTANCE))
        for variable in self.variables:
            built = built.with_variable(_query_variable(variable))
        top, identity = 0, 1
        for section in self.sections:
            if section.title:
                built = built.with_row(
                    dashboard.Row(section.title).id(identity).grid_pos(models.GridPos(h=1, w=24, x=0, y=top))
                )
                top, identity = top + 1, identity + 1
            left = 0
            for placed in section.panels:
                if left + placed.width > 24:
                    raise ValueError(f"{self.uid}: a section is wider than the page")
                position = models.GridPos(h=section.height, w=placed.width, x=left, y=top)
                built = built.with_panel(placed.builder.id(identity).grid_pos(position))
                left, identity = left + placed.width, identity + 1
            top += section.height
        made = built.build()
        for panel in made.panels or ():
            if panel.type_val == "table":
                panel.options.footer = None  # gone from Grafana 12.4
        return json.dumps(made, cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def _annotations(self) -> list[dashboard.AnnotationQuery]:
        scope = HOST if self.of_one_host else FLEET
        severity = "~page|ticket" if self.of_one_host else "page"
        found = [
            _annotation(
                "Alerts",
                f"{fired(scope, severity)} {self.only}".rstrip(),
                "red",
                "{{alertname}}",
                "{{instance}} {{gpu}} {{device}} {{severity}}",
            )
        ]
        if self.checkpoints:
            in_progress = f"{scope('gpuhost_checkpoint_in_progress')} {self.only}".rstrip()
            found.append(
                _annotation(
                    "Checkpoints",
                    f"sum without (mount, mode) ({in_progress}) > 0",
                    "yellow",
                    "Checkpoint",
                    "{{instance}}",
                )
            )
        return found


_INSTANCE = Variable(
    "instance",
    "Host",
    FLEET("gpuhost_exporter_build_info"),
    "instance",
    "The host as Prometheus scrapes it.",
)


def _datasource() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _cluster() -> dashboard.QueryVariable:
    every = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable("cluster")
        .label("Cluster")
        .description("The label cluster, where a store of many Prometheis has one.")
        .datasource(SOURCE)
        .query({"query": "label_values(gpuhost_exporter_build_info, cluster)", "refId": "cluster"})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .include_all(True)
        .all_value(".*")
        .current(every)
    )


def _query_variable(variable: Variable) -> dashboard.QueryVariable:
    query = f"label_values({variable.metric}, {variable.values_of})"
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .description(variable.description)
        .datasource(SOURCE)
        .query({"query": query, "refId": variable.name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
    )


def _links() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("gpuhost")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
        .as_dropdown(False)
    )


def _annotation(name: str, expression: str, colour: str, title: str, text: str) -> dashboard.AnnotationQuery:
    query = prometheus.Dataquery().datasource(SOURCE).expr(expression).range().ref_id("Anno").interval("30s")
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(True)
        .icon_color(colour)
        .target(query)
        .title_format(title)
        .text_format(text)
    )
