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
    counted = [(9, light), (7, (128, 128, 130)), (8, grey), (99, blue)]
    found = python("-c", f"from pictures import apart; print(apart({counted}))")
    assert found.stdout.strip() == str([blue, light, grey])


_READ_BACK = """
import json, sys, warnings
warnings.simplefilter("ignore")
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

def lost(written, read, path):
    if isinstance(written, dict):
        for key, value in written.items():
            yield from lost(value, read[key], f"{path}.{key}") if key in read else [f"{path}.{key}"]
    elif isinstance(written, list):
        for number, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from lost(one, other, f"{path}[{number}]")
    elif written != read:
        yield f"{path}: {written!r}, read as {read!r}"

register_default_plugins()
for file in sys.argv[1:]:
    written = json.load(open(file))
    read = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    print(*lost(written, read, file), sep="\\n", end="")
"""


def test_every_property_is_one_of_grafanas_schema(tmp_path):
    """The SDK's models are made from Grafana's schemas and drop what these do not know."""
    found = python("-c", _READ_BACK, *FILES)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr
    misspelt = tmp_path / "misspelt.json"
    board = load(FILES[0])
    board["panels"][0]["fieldConfig"]["defaults"]["units"] = "s"
    misspelt.write_text(json.dumps(board))
    assert python("-c", _READ_BACK, str(misspelt)).stdout.endswith("panels[0].fieldConfig.defaults.units")
