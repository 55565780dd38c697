"""What can be told of the dashboards without a Prometheus: names, labels, layout, words."""

from __future__ import annotations

import json
import re

import pytest
from support.boards import boards, filled_in, known, panels, queries
from support.promql import labels_of, names_in, walk
from support.rules import alerts, recordings, rules

from gpuhost_exporter.catalogue import specs

BOARDS = dict(boards())
QUERIES = tuple(queries())
_LEGEND = re.compile(r"{{\s*(\w+)\s*}}")
_COUNTERS = ("rate", "irate", "increase", "resets")
# Where red stands for nothing to act on: the words and colours of states that are all named.
ACT = "red"


@pytest.fixture(params=sorted(BOARDS), ids=str)
def board(request):
    return BOARDS[request.param]


def test_there_are_nine():
    assert sorted(board["uid"] for board in BOARDS.values()) == [
        "gpuhost-exporter", "gpuhost-fabric", "gpuhost-fleet", "gpuhost-host", "gpuhost-job", "gpuhost-metal",
        "gpuhost-nvlink", "gpuhost-storage", "gpuhost-time",
    ]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_a_query_names_what_there_is_and_its_legend_a_label_that_is_left(query):
    found = labels_of(filled_in(query.expression), known)
    labels = found.labels if found else frozenset()
    assert set(_LEGEND.findall(query.legend)) <= labels, f"{query.legend} of {sorted(labels)}"


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_rates_are_of_counters_and_counters_only_in_rates(query):
    import promql_parser as tree

    catalogue = specs()
    rated: set[str] = set()

    def see(node):
        if isinstance(node, tree.Call) and node.func.name in _COUNTERS:
            rated.update(names_in(str(node.args[0])))

    text = filled_in(query.expression)
    walk(text, see)
    for name in rated:
        spec = catalogue.get(name) or catalogue[name.rpartition("_")[0]]
        assert spec.kind in ("counter", "histogram"), f"{name} is a {spec.kind}"
    as_they_are = {name for name in names_in(text) if name.endswith("_total")} - rated
    # Totals over a device's life are of interest as such.
    assert as_they_are <= {"gpuhost_gpu_ecc_errors_total", "gpuhost_nvme_media_errors_total"}


def test_no_two_panels_overlap_and_none_is_wider_than_the_page(board):
    taken = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_rows_of_panels_fill_the_page(board):
    rows = {}
    for panel in panels(board):
        rows.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"]["w"])
    assert {sum(widths) for widths in rows.values()} == {24}


def test_panel_ids_and_titles_are_each_once(board):
    for key in ("id", "title"):
        found = [panel[key] for panel in board["panels"]]
        assert len(found) == len(set(found))


def test_every_panel_says_what_good_is_what_its_unit_is_and_why_it_may_be_empty(board):
    for panel in panels(board):
        if panel["type"] == "text":
            continue
        defaults = panel["fieldConfig"]["defaults"]
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["noValue"] not in ("", "No data"), panel["title"]


def test_every_axis_has_a_unit():
    for name, panel in timelines():
        assert panel["fieldConfig"]["defaults"]["unit"] not in ("short", "none"), f"{name}: {panel['title']}"


def test_both_readers_are_on_the_exporters_page():
    shown = {query.panel: query for query in QUERIES if query.board == "exporter" and query.panel.startswith("Readers")}
    assert 'reader="privileged"' in shown["Readers: started again"].expression
    assert shown["Readers: stuck"].legend == "{{reader}}"


def test_nothing_is_red_below_everything(board):
    """A figure that is not known has the colour of the lowest step: it must not call for anyone."""
    for panel in panels(board):
        steps = panel.get("fieldConfig", {}).get("defaults", {}).get("thresholds", {}).get("steps", [])
        if steps:
            assert steps[0]["color"] != ACT, panel["title"]


def test_the_time_and_the_variables_go_along_to_every_other_page(board):
    (link,) = board["links"]
    assert (link["type"], link["tags"], link["keepTime"], link["includeVars"]) == (
        "dashboards",
        ["gpuhost"],
        True,
        True,
    )
    assert board["tags"] == ["gpuhost"]


def test_the_data_source_is_a_variable_everywhere(board):
    first = board["templating"]["list"][0]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    for panel in panels(board):
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
    for variable in board["templating"]["list"][1:]:
        assert variable["datasource"]["uid"] == "${datasource}"


def test_every_variable_in_a_query_is_one_of_the_board_or_of_grafana():
    for name, board in BOARDS.items():
        own = {variable["name"] for variable in board["templating"]["list"]}
        for query in QUERIES:
            if query.board == name:
                used = set(re.findall(r"\$\{?([a-z]\w*)", query.expression))
                assert used <= own, f"{query}: {used - own}"


def test_gpus_go_by_their_number_and_never_by_uuid(board):
    for panel in panels(board):
        for target in panel.get("targets", ()):
            assert "{{uuid}}" not in target.get("legendFormat", ""), panel["title"]
            if target.get("format") == "table":
                assert not re.search(r"by \([^)]*uuid", target["expr"]), panel["title"]


def test_alerts_are_drawn_into_every_page_and_checkpoints_where_they_matter():
    for name, board in BOARDS.items():
        drawn = [annotation["name"] for annotation in board["annotations"]["list"]]
        assert drawn[0] == "Alerts", name
        assert ("Checkpoints" in drawn) == (name in ("gpu-time", "host", "job", "storage")), name


def test_the_alerts_link_to_pages_that_are_here():
    uids = {board["uid"] for board in BOARDS.values()}
    linked = {re.search(r"/d/([\w-]+)", rule.body["annotations"]["dashboard_url"]).group(1) for rule in alerts()}
    assert linked <= uids


def test_pages_come_before_tickets_and_the_newest_first():
    """By a number that no column shows: what is a ticket is older than anything can be."""
    for name in ("fleet", "host"):
        (panel,) = (each for each in panels(BOARDS[name]) if each["title"] == "What is wrong")
        sort, limit, organize = (each for each in panel["transformations"] if each["id"] != "merge")
        (by,) = sort["options"]["sort"]
        assert (sort["id"], by["desc"], limit["id"]) == ("sortBy", False, "limit")
        assert limit["options"]["limitField"] <= 100
        assert organize["options"]["excludeByName"][by["field"]]
        assert not panel["options"].get("sortBy"), "a sort of the table itself undoes it"
        (query,) = (each for each in panel["targets"] if f"Value #{each['refId']}" == by["field"])
        assert re.search(r"\+ 1000000000 \* max by [^{]+\{[^}]+,severity=\"ticket\"", query["expr"])


def test_only_this_projects_alerts_are_counted_and_drawn():
    found = [selector for query in QUERIES for selector in re.findall(r"ALERTS\{[^}]*\}", query.expression)]
    assert len(found) > 15
    for selector in found:
        assert selector.startswith('ALERTS{alertname=~"Gpuhost.*"'), selector


def test_rows_and_lines_of_hosts_are_told_apart_by_cluster_too():
    apart = [query for query in QUERIES if re.search(r"by \([^)]*\binstance\b", query.expression)]
    assert len(apart) > 20
    for query in apart:
        for labels in re.findall(r"\bby \(([^)]*\binstance\b[^)]*)\)", query.expression):
            assert "cluster" in labels, query
    for query in QUERIES:
        assert not re.search(r"\bon \(instance\b", query.expression), query


def test_a_link_to_a_host_carries_its_cluster():
    linked = 0
    for name, board in BOARDS.items():
        for panel in panels(board):
            for override in panel.get("fieldConfig", {}).get("overrides", ()):
                for link in (each["value"] for each in override["properties"] if each["id"] == "links"):
                    linked += 1
                    assert "&var-cluster=${__data.fields.Cluster}&var-instance=${__data.fields.Host}" in link[0]["url"]
                    shown = panel["transformations"][-1]["options"]["renameByName"].values()
                    assert {"Cluster", "Host"} <= set(shown), f"{name}: {panel['title']}"
    assert linked >= 4


def test_what_is_recorded_every_few_minutes_is_read_as_its_last_value():
    """Prometheus may look back less far than that: at one minute such a series is there one minute in four."""
    slow = {rule.name for rule in recordings() if rule.group.endswith("-days")}
    assert "host:gpuhost_worth_dedicated:bool" in slow
    read = [(query, name) for query in QUERIES for name in slow & names_in(filled_in(query.expression))]
    assert slow - {name for _, name in read} <= set().union(*(names_in(rule.expr) for rule in rules())), (
        "nobody reads it"
    )
    for query, name in read:
        for at in re.finditer(re.escape(name), query.expression):
            rest = re.match(r"(\{[^}]*\})\[10m\]", query.expression[at.end() :])
            assert rest, query


def test_no_query_or_threshold_has_the_guides_checkpoint_share_typed_in():
    for name, board in BOARDS.items():
        assert not re.search(r"0\.1666|0\.167", json.dumps(board["panels"])), name


def test_a_host_that_died_is_missed_at_the_top_of_the_fleet():
    shown = {query.panel: query.expression for query in QUERIES if query.board == "fleet"}
    assert re.fullmatch(r"sum\(up\{.+\}\) / count\(up\{.+\}\)", shown["Hosts that tell"])
    assert "last_over_time(gpuhost_gpus_expected" in shown["GPUs that answer"]


def steps_of(board, title, letter=None):
    """A panel's steps of colour, or those of one of its queries."""
    (panel,) = (each for each in panels(BOARDS[board]) if each["title"] == title)
    if letter is None:
        found = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    else:
        (found,) = (
            each["value"]["steps"]
            for override in panel["fieldConfig"]["overrides"]
            if override["matcher"] == {"id": "byFrameRefID", "options": letter}
            for each in override["properties"]
            if each["id"] == "thresholds"
        )
    return [(step.get("value"), step["color"]) for step in found]


def test_against_its_targets_a_host_is_red_only_where_an_alert_pages():
    title = "Target against actual"
    letters = {query.legend: query.letter for query in QUERIES if query.board == "host" and query.panel == title}
    assert ACT not in {colour for _, colour in steps_of("host", title)}
    assert steps_of("host", title, letters["NVLink usable"]) == [(None, "text"), (0, ACT), (0.999, "green")]
    for storage in ("Storage, written", "Storage, read"):
        assert steps_of("host", title, letters[storage]) == steps_of("storage", "Write demand met")


def test_no_array_served_is_a_figure_and_no_absence():
    shown = {query.panel: query.expression for query in QUERIES if query.board == "storage"}
    assert re.fullmatch(r"sum\(gpuhost_array_up\{.+\}\) / count\(.+\)", shown["Arrays served"])


def test_a_port_that_was_never_cabled_is_not_red():
    places = (("fabric", "Ports up", "A"), ("fabric", "Ports", "A"), ("fabric", "Ports", "B"))
    asked = {(query.board, query.panel, query.letter): query.expression for query in QUERIES}
    for place in (*places, ("fleet", "Hosts below target", "C")):
        assert "unless on (cluster, job, instance, device, port) device:gpuhost_rdma_port_used:bool" in asked[place]
    (table,) = (panel for panel in panels(BOARDS["fabric"]) if panel["title"] == "Ports")
    for column in ("Up", "Cable"):
        (cell,) = (each for each in table["fieldConfig"]["overrides"] if each["matcher"]["options"] == column)
        (shown,) = (each["value"][0]["options"]["-1"] for each in cell["properties"] if each["id"] == "mappings")
        assert (shown["text"], shown["color"]) == ("unused", "text")


def test_pauses_are_of_the_worst_priority_as_the_alert_takes_them():
    drawn = [query.expression for query in QUERIES if query.panel == "3. Pauses (PFC)" and not query.letter > "B"]
    assert len(drawn) == 2
    assert all(expression.startswith("max by (device) (rate(") for expression in drawn)


def test_ports_have_a_line_for_each_rate():
    """And not for the slowest alone, which a fast port runs above."""
    for title in ("Ports: sent", "Ports: received"):
        lines = [query for query in QUERIES if query.board == "fabric" and query.panel == title and query.letter > "A"]
        assert len(lines) == 3
        assert all(re.match(r"\(max\(", query.expression) for query in lines)
        assert [query.expression.count("scalar(") for query in lines] == [0, 1, 2]


def timelines():
    return [(name, each) for name, board in BOARDS.items() for each in panels(board) if each["type"] == "timeseries"]


def test_a_target_is_drawn_only_where_there_is_something_to_hold_against_it():
    """Else no panel with a target is ever empty, and none says why it is."""
    dashed = 0
    for name, panel in timelines():
        asked = {target["refId"]: target["expr"] for target in panel["targets"]}
        for override in panel["fieldConfig"]["overrides"]:
            if any(each["id"] == "custom.lineStyle" for each in override["properties"]):
                dashed += 1
                first, target = asked["A"], asked[override["matcher"]["options"]]
                end = f") and on () present_over_time(({first})[$__range:$__interval] @ end())"
                assert target.endswith(end), f"{name}: {panel['title']}"
    assert dashed > 25


def test_no_line_gets_a_colour_that_means_something_by_its_place():
    for name, panel in timelines():
        assert panel["fieldConfig"]["defaults"]["color"] == {"mode": "shades", "fixedColor": "blue"}, panel["title"]
        legends = {target["refId"]: target["legendFormat"] for target in panel["targets"]}
        for override in panel["fieldConfig"]["overrides"]:
            matched = override["matcher"]["options"]
            for colour in (each["value"]["fixedColor"] for each in override["properties"] if each["id"] == "color"):
                assert ACT not in colour or legends.get(matched, matched) == "lost", f"{name}: {panel['title']}"
                if override["matcher"]["id"] == "byRegexp":
                    assert not re.search("red|orange|green", colour)


def colour_of(panel, shown):
    for override in panel["fieldConfig"]["overrides"]:
        matcher = override["matcher"]
        by_name = matcher["id"] == "byName" and matcher["options"] == shown
        if by_name or (matcher["id"] == "byRegexp" and re.search(matcher["options"].strip("/"), shown)):
            yield override["properties"][0]["value"]["fixedColor"]


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        (
            "4. Packets are lost or sent again",
            [
                "ack_timeout",
                "adaptive_retransmission",
                "adaptive_retransmission_timeout",
                "implied_nak",
                "retransmission",
                "sequence_nak",
                *(f"{each}, slow receiver" for each in ("duplicate_request", "out_of_buffer", "rnr_nak")),
            ],
        ),
        ("Held back by", ["md0: array", "md0: member", "md0: submitter"]),
        ("Delivered while asked for more", ["md0 read", "md0 write"]),
        ("Tasks waiting", ["for cpu", "for memory", "for io"]),
        ("Speed of the last checkpoint", ["/data (sync)", "/data (async)"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lines_of_one_query_are_told_apart(title, shown):
    (panel,) = (each for _, each in timelines() if each["title"] == title)
    colours = [list(colour_of(panel, each))[-1] for each in shown]
    assert len(set(colours)) == len(shown), colours


@pytest.mark.parametrize(
    "shown",
    [
        [f"nvme{number}n1" for number in range(10)],
        [f"mlx5_{number}" for number in range(10)],
        [f"GPU {number}" for number in range(10, 20)],
        [f"gpu-host-{number}:19400" for number in range(10)],
    ],
    ids=lambda shown: shown[0],
)
def test_things_have_the_colour_of_their_number(shown):
    (panel,) = (each for _, each in timelines() if each["title"] == "Drives: latency of a request")
    colours = [list(colour_of(panel, each)) for each in shown]
    assert all(len(each) == 1 for each in colours), colours
    assert len({each for (each,) in colours}) == 10


def test_a_job_is_looked_for_by_what_is_the_same_on_all_its_hosts():
    (variable,) = (each for each in BOARDS["job"]["templating"]["list"] if each["name"] == "work")
    assert re.fullmatch(r"label_values\(gpu:gpuhost_work:info\{.+\}, work\)", variable["query"]["query"])
    asked = [query for query in QUERIES if query.board == "job"]
    assert not [query for query in asked if "gpuhost_gpu_job_info" in names_in(filled_in(query.expression))]
    for query in asked:
        assert 'work="$work"' in query.expression, query


def test_what_a_culprit_cost_is_of_its_own_incident():
    """Of one that did not join the hang at that moment, of a straggler the minutes in which it was one."""
    for board in ("job", "gpu-time"):
        (asked,) = [query.expression for query in QUERIES if query.panel == "Who held it up" and query.board == board]
        joined, straggler = re.findall(r"(?:max|count)_over_time\(\((.+?)\)\[\$__range:1m\]\)", asked)
        assert names_in(filled_in(joined)) >= {"gpuhost_gpu_hang_seconds", "gpuhost_gpu_culprit_info"}
        assert 'kind="not_joined"' in joined
        assert 'kind="straggler"' in straggler
        assert "gpuhost_gpu_hang_seconds" not in straggler
        assert ('work="$work"' in joined, 'work="$work"' in straggler) == (board == "job",) * 2


def test_what_is_counted_says_so_at_its_axis():
    (panel,) = (each for each in panels(BOARDS["job"]) if each["title"] == "GPUs by what they do")
    assert panel["fieldConfig"]["defaults"]["unit"] == "suffix: GPUs"
