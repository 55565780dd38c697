"""The rules as prometheus-operator takes them, made from the plain files; links changed on the way, if wanted.

python3 alerts/prometheusrule.py > alerts/prometheusrule.yaml
python3 alerts/prometheusrule.py --runbooks https://wiki.example/gpuhost --dashboards https://grafana.example/d
"""

from __future__ import annotations

import argparse
import os
from glob import glob

HERE = os.path.dirname(os.path.abspath(__file__))
BASE = "https://gpuhost.example"
_HEAD = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: gpuhost-{name}
  labels:
    app.kubernetes.io/name: gpuhost-exporter
spec:
"""


def render(runbooks: str, dashboards: str) -> str:
    """One document a rule file: what a plain file holds is what `spec` holds."""
    documents = []
    for path in sorted(glob(f"{HERE}/rules/*.yml")):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        text = text.replace(f"{BASE}/runbooks", runbooks).replace(f"{BASE}/d/", f"{dashboards}/")
        spec = "".join(f"  {line}" if line.strip() else line for line in text.splitlines(keepends=True))
        name = os.path.basename(path).removesuffix(".yml")
        documents.append(_HEAD.format(name=name) + spec)
    return "# Made by prometheusrule.py from rules/*.yml: change those.\n" + "---\n".join(documents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runbooks", default=f"{BASE}/runbooks", metavar="URL", help="where the runbooks are served")
    parser.add_argument("--dashboards", default=f"{BASE}/d", metavar="URL", help="Grafana's URL for dashboards")
    options = parser.parse_args()
    print(render(options.runbooks.rstrip("/"), options.dashboards.rstrip("/")), end="")


if __name__ == "__main__":
    main()
