"""The committed JSON is what build.py makes, and a misspelt name does not get as far as that."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.boards import FILES, FOLDER, load

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="grafana-foundation-sdk needs Python 3.11 (typing.Self)"
)


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((FOLDER, *filter(None, sys.path)))}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


def test_the_committed_dashboards_are_what_build_makes():
    found = python(f"{FOLDER}/build.py", "--check")
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    ("selector", "complaint"),
    [
        ('HOST("gpuhost_gpu_upp")', "gpuhost_gpu_upp: no such metric or recording rule; gpuhost_gpu_up?"),
        ('HOST("host:gpuhost_time:sum_increase2h")', "no such metric or recording rule"),
        ('HOST("gpuhost_gpu_up", link="3")', "gpuhost_gpu_up has no label link"),
        ('HOST("gpuhost_checkpoint_size_bytes")', "no such metric or recording rule"),
        ('HOST("gpuhost_checkpoint_size_bytes_sum", le="1")', "has no label le"),
        ('HOST("gpuhost_gpu_job_info", rankk="1")', "has no label rankk"),
    ],
)
def test_a_name_or_label_that_nobody_makes_ends_the_build(selector, complaint):
    found = python("-c", f"from kit.board import HOST; {selector}")
    assert found.returncode == 1
    assert complaint in found.stderr


def test_a_label_that_prometheus_renames_is_known_by_its_new_name():
    found = python("-c", "from kit.board import HOST; print(HOST('gpuhost_gpu_job_info', exported_job='!~a|b'))")
    assert 'exported_job!~"a|b"' in found.stdout


_NARROWED = """
import json
from kit.board import Board
board = Board("u", "t", "d", (), of_one_host=False, checkpoints=True, only="and on (instance) up == 0")
for annotation in json.loads(board.json())["annotations"]["list"]:
    print(annotation["target"]["expr"])
"""


def test_a_page_can_narrow_its_annotations():
    found = python("-c", _NARROWED)
    alerts, checkpoints = found.stdout.splitlines()
    assert alerts.endswith('cluster=~"$cluster"} and on (instance) up == 0')
    assert checkpoints.endswith('{cluster=~"$cluster"} and on (instance) up == 0) > 0')


def test_a_pictures_palette_keeps_two_lines_apart_and_the_frequent_colours_as_they_are():
    blue, light, grey = (87, 148, 242), (100, 148, 242), (128, 128, 128)
    white, page = (255, 255, 255), (244, 245, 245)
    counted = [(9, light), (7, (128, 128, 130)), (8, grey), (99, blue), (9900, white), (5000, page)]
    found = python("-c", f"from pictures import apart; print(apart({counted}))")
    assert found.stdout.strip() == str([white, page, blue, light, grey])


SCHEMA = os.path.join(os.path.dirname(__file__), "..", "support", "grafana_schema.py")


def test_every_board_is_of_grafanas_schema():
    found = python("-W", "ignore", SCHEMA, *FILES)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("fieldConfig.defaults.units", "s", "panels[{}].fieldConfig.defaults.units: unknown"),
        ("gridPos.w", "12", "panels[{}].grid_pos.w: '12' is no int"),
        ("transparent", 1, "panels[{}].transparent: 1 is no bool"),
        ("title", ["Busy"], "panels[{}].title: ['Busy'] is no str"),
        ("fieldConfig.defaults.color.mode", "rainbow", "color.mode: 'rainbow' is none of"),
        ("fieldConfig.defaults.custom.drawStyle", "lines", "custom.draw_style: 'lines' is none of"),
        ("fieldConfig.defaults.custom.fillOpacity", "10", "custom.fill_opacity: '10' is no float"),
        ("options.legend.placement", "below", "options.legend.placement: 'below' is none of"),
        ("targets.0.refId", 1, "targets[0].ref_id: 1 is no str"),
    ],
    ids=lambda value: value if isinstance(value, str) and "[" not in value else "",
)
def test_what_is_not_of_it_is_found(tmp_path, place, value, complaint):
    board = load(FILES[0])
    number = next(number for number, panel in enumerate(board["panels"]) if panel["type"] == "timeseries")
    *outer, last = place.split(".")
    inside = board["panels"][number]
    for name in outer:
        inside = inside[int(name) if name.isdigit() else name]
    inside[last] = value
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(board))
    assert complaint.format(number) in python("-W", "ignore", SCHEMA, str(changed)).stdout
