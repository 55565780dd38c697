"""Simulated hosts, Prometheus, Alertmanager and a receiver that writes down what it is told, in scaled time.

with Delivery(folder, by=12, every=2, hosts={"gpu-7": "steady"}) as delivery:   host -> the scenario that it begins with
    delivery.switch("gpu-7", "gpu-lost")
    delivery.wait_for(lambda: delivery.firing("gpu-7"), 60)
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from support.boards import FOLDER
from support.daemon import Daemon
from support.rules import ALERTS, RULE_FILES, load
from support.scaled import scaled
from support.simulated import arguments

sys.path.insert(0, os.path.join(FOLDER, "demo"))

import stack

HOST = "h100x8"
# A cause is to be seen before what it leads to is told of. That wait is scaled, so what polls slowly is hurried.
_HURRIED = ("fabric", "gpu_health", "inventory", "nvlink", "nvme", "raid", "rdma", "rdma_ethernet")
_SUBJECTS = ("gpu", "device", "link", "collector")


@dataclass(frozen=True, slots=True)
class Notification:
    """One alert in one message."""

    message: int  # its number
    receiver: str
    instance: str
    name: str  # and which GPU, drive, ...
    firing: bool


class Receiver(ThreadingHTTPServer):
    """Takes Alertmanager's webhooks at /NAME for the receiver of that name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Webhook)
        self.told: list[Notification] = []
        self._messages = 0
        self._one = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def put(self, receiver: str, message: dict[str, Any]) -> None:
        with self._one:
            self._messages += 1
            for alert in message["alerts"]:
                labels = alert["labels"]
                name = " ".join([labels["alertname"], *(labels[each] for each in _SUBJECTS if each in labels)])
                firing = alert["status"] == "firing"
                self.told.append(Notification(self._messages, receiver, labels["instance"], name, firing))


class _Webhook(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.put(self.path.strip("/"), message)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Delivery:
    """`by`: what durations are divided by. `every`: seconds between scrapes, and between evaluations."""

    def __init__(self, folder: Path, by: int, every: int, hosts: Mapping[str, str]) -> None:
        self.receiver = Receiver()
        self._folder, self._by, self._every, self._hosts = folder, by, every, hosts
        self._daemons: dict[str, Daemon] = {}
        self._processes = stack.Processes(folder)
        self.prometheus: stack.Prometheus

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        port = stack.alertmanager(self._processes, self._routing())
        rules = tuple(self._rules(Path(path)) for path in RULE_FILES)
        config = self._folder / "exporter.toml"
        config.write_text("".join(f"[collector.{name}]\ninterval = {self._every}\n" for name in _HURRIED))
        for host, scenario in self._hosts.items():
            folder = self._folder / host
            folder.mkdir()
            more = ("--collector.ledger", f"--config.file={config}")
            self._daemons[host] = Daemon(folder, *arguments(folder, HOST, scenario), *more)
        for daemon in self._daemons.values():
            daemon.ready()
        targets = {host: daemon.port for host, daemon in self._daemons.items()}
        self.prometheus = stack.Prometheus(
            self._processes, targets, alertmanager=port, rules=rules, every=self._every, own_jobs=True
        )
        self.prometheus.start()

    def _routing(self) -> Path:
        configuration = scaled(load(f"{ALERTS}/alertmanager.yml"), self._by)
        for receiver in configuration["receivers"]:
            if receiver["name"] != "nowhere":
                url = f"http://127.0.0.1:{self.receiver.server_address[1]}/{receiver['name']}"
                receiver["webhook_configs"] = [{"url": url, "send_resolved": True}]
        file = self._folder / "alertmanager.yml"
        file.write_text(yaml.safe_dump(configuration))
        return file

    def _rules(self, path: Path) -> Path:
        file = self._folder / path.name
        file.write_text(yaml.safe_dump(scaled(load(str(path)), self._by)))
        return file

    def __exit__(self, *_: object) -> None:
        self._processes.stop()
        for daemon in self._daemons.values():
            daemon.stop()
        self.receiver.shutdown()
        self.receiver.server_close()

    def messages(self, host: str, receiver: str) -> list[set[str]]:
        """Of each message to the receiver what was not known to fire on the host; messages without news left out."""
        found: dict[int, set[str]] = {}
        firing: set[str] = set()
        for told in list(self.receiver.told):
            if (told.instance, told.receiver) == (host, receiver):
                if told.firing and told.name not in firing:
                    found.setdefault(told.message, set()).add(told.name)
                firing = firing | {told.name} if told.firing else firing - {told.name}
        return list(found.values())

    def firing(self, host: str) -> set[str]:
        """What was last told to fire, and not yet to be over."""
        last = {(told.receiver, told.name): told.firing for told in list(self.receiver.told) if told.instance == host}
        return {name for (_, name), firing in last.items() if firing}

    def switch(self, host: str, scenario: str) -> None:
        done = self._daemons[host].command("simulate", scenario, "--control", str(self._folder / host / "control.json"))
        assert done.returncode == 0, done.stderr

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.prometheus.url}/api/v1/{path}", timeout=30) as answer:
            return json.load(answer)["data"]

    def silent(self) -> list[str]:
        """The hosts that have failed to answer Prometheus at least once."""
        query = urllib.parse.urlencode({"query": "min_over_time(up[1h]) == 0"})
        return sorted(each["metric"]["instance"] for each in self.ask(f"query?{query}")["result"])

    def wait_for(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Whether it held in time."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                return False
            assert not (ended := self._processes.ended()), f"{ended[0]} ended:\n{self._processes.log(ended[0])}"
            time.sleep(0.5)
        return True
