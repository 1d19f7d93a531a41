# Two commands are all the set-up: make demo, make test. Both build .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built-from-lock

.DEFAULT_GOAL := help
.PHONY: help env demo test lint format lock clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

env: $(STAMP)  ## Build .venv from requirements.lock

# The stamp is written last: an interrupted build is built again.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "learned_opt needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	@rm -f $@
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@# uv installs into the environment that it is itself in; the lock holds it, so it stays.
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: env  ## Meta-train an LSTM on quadratics, judge it, show how to load it
	$(BIN)/python experiments/quadratic.py --size demo --out $(DEMO)

DEMO ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

lint: env  ## Linter, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint  ## Linter, types, tests and doctests, coverage
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

format: env  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: env  ## Choose new versions of all packages, for all supported Pythons
	$(BIN)/python -m uv pip compile --quiet --universal --upgrade --python-version 3.11 \
	  --all-extras --no-annotate --no-header pyproject.toml --output-file requirements.lock

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache tests/.cache .coverage .coverage.*
