# The habits of the project. `make demo` and `make test` work on a bare machine: Python 3.11+, pip, make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Reaches the recipe through the environment, so that any path survives the shell.
export VIDEOS SEED

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Kinora needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml requirements.lock
	@echo "Installing Kinora from the lock (a few minutes the first time) ..."
	$(PIP) install --quiet --constraint requirements.lock --editable '.[engine,local]'
	@touch $@

$(DEV_STAMP): $(STAMP) requirements-dev.txt
	$(PIP) install --quiet --constraint requirements.lock --requirement requirements-dev.txt
	@touch $@

.PHONY: install
install: $(STAMP) ## Create .venv and install Kinora from the lock

.PHONY: bench-install
bench-install: $(DEV_STAMP) ## Install what the engine is compared with by python -m benchmarks engine.speed
	$(PIP) install --quiet --constraint requirements.lock --editable '.[bench]'

.PHONY: demo
demo: $(STAMP) ## Fine-tune a tiny video model end to end (VIDEOS=folder for your own clips)
	$(BIN)/kinora demo $${VIDEOS:+--videos "$$VIDEOS"}

.PHONY: up
up: $(STAMP) ## Keep the service running until Ctrl-C
	$(BIN)/kinora up

# Each worker runs servers of its own. Many tests wait, for processes, leases and silences: three workers keep two
# cores busy. Files keep the order of tests/distribution.py, in which what takes longest comes first.
WORKERS ?= 3

# Some environments ask Python to keep no compiled modules: each of the hundreds of processes that the tests start
# would compile all of ours again.
.PHONY: test
test: $(DEV_STAMP) ## Run every test
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

MINUTES ?= 10

.PHONY: soak
soak: $(DEV_STAMP) ## Kill, freeze, cut and wipe for MINUTES=n, and judge what callers saw (SEED=n repeats; MUTATIONS=1 puts known faults in, each to be found)
	$(BIN)/python -m benchmarks soak --minutes $(MINUTES) $${SEED:+--seed "$$SEED"} $(if $(MUTATIONS),--mutations)

SEEDS ?= 1000

.PHONY: simulate
simulate: $(DEV_STAMP) ## Simulate faults (SEEDS=n for how many, SEED=k to replay one with its trace)
	$(BIN)/python -m tests.simulation.run $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

.PHONY: fuzz
fuzz: $(DEV_STAMP) ## Send the API what nobody expects, for long and differently each time
	KINORA_FUZZ=long $(BIN)/python -m pytest tests/fuzz

.PHONY: audit
audit: $(DEV_STAMP) ## Look dependencies up among known vulnerabilities (AUDIT=strict fails without a network)
	$(BIN)/python .ci/audit.py

.PHONY: check
check: $(DEV_STAMP) audit ## Format, lint, types, import contracts and known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: schemas
schemas: $(DEV_STAMP) ## Write schemas/events/json from the event types
	$(BIN)/python -m schemas.generate

.PHONY: lock
lock: $(DEV_STAMP) ## Write requirements.lock from what is installed
	$(PIP) freeze --exclude-editable | sed -E 's/\+[A-Za-z0-9.]+$$//' | grep -vE '^(-e|kinora)' > requirements.lock

.PHONY: clean
clean: ## Remove the environment and caches, never data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
