"""Pictures of every dashboard: `python dashboards/pictures.py --renderer FOLDER --prometheus URL`, while the demo runs.

The renderer is a folder with render.mjs, which draws a dashboard's JSON with Grafana's own components. `--check` looks
only: it draws in dark and light, 1600 and 1280 pixels wide, into `--to`, and fails on an error of a query.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
# The host that has most to show on the page now.
_HOSTS = {
    "gpu-time": "topk(1, host:gpuhost_at_risk_dollars:sum)",
    "host": 'topk(1, count by (instance) (ALERTS{alertstate="firing",severity="page"} and on (instance)'
    " host:gpuhost_at_risk_dollars:sum))",
    "nvlink": "bottomk(1, host:gpuhost_nvlink_usable:min_ratio > 0)",
    "metal": "topk(1, host:gpuhost_utilization_in_use:avg5m)",
    "storage": "topk(1, max by (instance) (gpuhost_storage_member_latency_ratio))",
    "fabric": "topk(1, sum by (instance) (increase(gpuhost_rdma_pause_seconds_total[10m])))",
}
_COLOURS, _HAIR = 256, 12  # of a palette; a difference of 256 that nobody sees


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw every dashboard as a picture.")
    parser.add_argument("--renderer", required=True, type=Path, help="folder with render.mjs, built")
    parser.add_argument("--prometheus", required=True, help="as the demo says")
    parser.add_argument("--to", type=Path, default=HERE / "pictures")
    parser.add_argument("--only", action="append", help="a dashboard's file name without .json")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    options.to.mkdir(exist_ok=True)
    looks = (
        [(theme, width) for theme in ("dark", "light") for width in (1600, 1280)]
        if options.check
        else [("light", 1600)]
    )
    failed = 0
    for file in sorted(HERE.glob("*.json")):
        if options.only and file.stem not in options.only:
            continue
        for theme, width in looks:
            out = options.to / (f"{file.stem}-{theme}-{width}.png" if options.check else f"{file.stem}.png")
            command = [
                "node", "render.mjs", "--dashboard", str(file), "--prometheus", options.prometheus,
                "--out", str(out), "--theme", theme, "--width", str(width), "--from", "now-1h",
            ]  # fmt: skip
            if expression := _HOSTS.get(file.stem):
                command += ["--var", f"instance={host(options.prometheus, expression)}"]
            drawn = subprocess.run(command, cwd=options.renderer, check=False)  # noqa: S603
            failed += drawn.returncode != 0
            if not options.check:
                smaller(out)
    return int(failed > 0)


def host(prometheus: str, expression: str) -> str:
    """The host that the expression picks, any where it picks none: nothing need be wrong just now."""
    for each in (expression, "topk(1, gpuhost_simulated)"):
        query = urllib.parse.urlencode({"query": each})
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}", timeout=10) as answer:  # noqa: S310
            for series in json.load(answer)["data"]["result"]:
                instance: str = series["metric"]["instance"]
                return instance
    raise SystemExit(f"{prometheus}: no host yet")


def smaller(file: Path) -> None:
    """A dashboard has few colours: a palette makes its picture less than half as large."""
    from PIL import Image

    with Image.open(file) as picture:
        coloured = picture.convert("RGB")
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in apart(coloured.getcolors(1 << 24)) for part in colour])
    coloured.quantize(palette=palette, dither=Image.Dither.NONE).save(file, optimize=True)


def apart(counted: list[tuple[int, tuple[int, int, int]]]) -> list[tuple[int, int, int]]:
    """The most frequent colours and none within a hair of another, but for areas: white on nearly white. Pillow's own
    choice of a palette makes one of two lines' colours."""
    found: list[tuple[int, int, int]] = []
    area = sum(pixels for pixels, _ in counted) / 100
    for pixels, colour in sorted(counted, reverse=True):
        if pixels > area or all(max(abs(a - b) for a, b in zip(colour, each, strict=True)) > _HAIR for each in found):
            found.append(colour)
    return found[:_COLOURS]


if __name__ == "__main__":
    sys.exit(main())
