# make run    this host's metrics and status page; SIMULATE=h100x8 for a simulated GPU host
# make test   lint, types and tests, about eight minutes
PYTHON ?= python3
VENV := .venv
ADDRESS ?= 127.0.0.1:19400
SIMULATE ?=
NEWER := build/prometheus-3

# Loudly: the first failure stays in the log. More than ten are no accident.
AGAIN = { echo "Those that failed once more, alone: a machine that is busy elsewhere disturbs tests of processes."; \
  $(VENV)/bin/pytest --last-failed --last-failed-no-failures none --maxfail 10; }

.PHONY: run demo test test-full test-vm test-hardware bench metrics alerts dashboards clean

run: $(VENV)/.run
	@test -n "$(SIMULATE)" || test -e /dev/nvidiactl || \
	  echo "No NVIDIA driver here: serving what this host has. For a simulated 8-GPU host: make run SIMULATE=h100x8"
	@echo "Status page: http://$(ADDRESS)/   metrics: http://$(ADDRESS)/metrics   Ctrl-C stops"
	@exec $(VENV)/bin/gpuhost-exporter serve --web.listen-address=$(ADDRESS) $(if $(SIMULATE),--simulate $(SIMULATE))

# Eight simulated hosts, an hour of history, Prometheus with the rules, Alertmanager, and Grafana where installed.
demo: $(VENV)/.run
	@exec $(VENV)/bin/python dashboards/demo/demo.py

test: $(VENV)/.dev
	$(VENV)/bin/ruff format --check exporter tests alerts dashboards deploy
	$(VENV)/bin/ruff check exporter tests alerts dashboards deploy
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest -n 4 --dist worksteal -m "not slow and not gpu and not vm and not alone" || $(AGAIN)
	$(VENV)/bin/pytest -m "alone and not slow and not gpu and not vm" || $(AGAIN)

# The long tier: everything above, the slow tests, a machine with real drivers, and the benchmark.
test-full: test
	@if command -v mpirun >/dev/null; then \
	  $(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev,mpi]'; \
	  else echo "No mpirun: the allreduce is NOT tested (apt-get install openmpi-bin)"; fi
	@if tests/support/newer-prometheus.sh $(NEWER); then \
	  GPUHOST_PROMTOOLS=$(NEWER)/usr/bin/promtool $(VENV)/bin/pytest -n 2 tests/alerts/test_promtool.py; \
	  else echo "No Prometheus 3 here: the rules are NOT tried on it (apt-get and root bring one)"; fi
	$(VENV)/bin/pytest -rs -m "slow and not gpu and not vm"
	$(MAKE) test-vm
	$(MAKE) bench

# The exporter in a Debian under QEMU: NVMe drives, md arrays, systemd. tests/vm/README.md says what it needs.
test-vm: $(VENV)/.dev
	$(VENV)/bin/pytest -m vm --durations=0 tests/vm

# On a host with a GPU: invariants of what it tells. tests/hardware/README.md says how to record it.
test-hardware: $(VENV)/.dev
	$(VENV)/bin/pytest -m gpu -rs tests/hardware

bench: $(VENV)/.dev
	$(VENV)/bin/python tests/bench/bench.py
	$(VENV)/bin/python tests/bench/bench.py --no-collector.ledger --no-collector.rdma --no-collector.rdma_ethernet
	PYTHONPATH=tests:tests/unit $(VENV)/bin/python tests/bench/storage.py
	PYTHONPATH=tests $(VENV)/bin/python tests/bench/fleet.py
	PYTHONPATH=tests $(VENV)/bin/python tests/bench/rules.py
	PYTHONPATH=tests $(VENV)/bin/python tests/bench/ledger.py
	PYTHONPATH=tests $(VENV)/bin/python tests/bench/latency.py

metrics: $(VENV)/.run
	$(VENV)/bin/gpuhost-exporter metrics > exporter/METRICS.md

# After a change to a panel, a metric or a recording rule.
dashboards: $(VENV)/.dev
	$(VENV)/bin/python dashboards/build.py

# The rules as prometheus-operator takes them.
alerts:
	$(PYTHON) alerts/prometheusrule.py > alerts/prometheusrule.yaml

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; name one with: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is needed: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/pip
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
