# `make help` lists the targets. Python 3.11 or newer and make are all that must be there before.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# Stamps are written last, so an interrupted build leaves none; they name the version, so another
# PYTHON builds another environment.
HAS_UV := $(VENV)/.has-uv-$(PYTHON_VERSION)
COMPLETE := $(VENV)/.complete-$(PYTHON_VERSION)
UV := UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv --quiet
LOCK := pip compile --universal --python-version 3.11 --all-extras --no-annotate --no-header
# One more than there are cores, as tests wait for processes now and then.
JOBS ?= $(shell echo $$(( $$(nproc 2>/dev/null || sysctl -n hw.ncpu) + 1 )))
# Without byte code each process that the tests start compiles two thousand modules anew, for 8 s.
export PYTHONDONTWRITEBYTECODE :=
# COVERAGE=1 measures it and fails below the bar of setup.cfg. It is off by default: before Python
# 3.12 it slows down tracing by half.
COVERAGE ?=
MEASURE := $(if $(COVERAGE),--cov --cov-report=term-missing:skip-covered)
# Runs are never overwritten.
DEMO ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo '  The environment is built by $(PYTHON); make PYTHON=python3.12 ... takes another one.'

.PHONY: demo
demo: $(COMPLETE) ## meta-train an optimizer for quadratics and compare it (under 3 minutes)
	$(BIN)/python experiments/quadratic.py --size demo --out $(DEMO)

.PHONY: env
env: $(COMPLETE) ## build .venv from requirements.lock

.PHONY: test
test: lint types pytest ## check style, types and tests

.PHONY: lint
lint: $(COMPLETE) ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(COMPLETE) ## check types
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: pytest
pytest: $(COMPLETE) ## run tests and doctests; COVERAGE=1 also measures their coverage
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(MEASURE)

.PHONY: format
format: $(COMPLETE) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: lock
lock: $(HAS_UV) ## resolve the dependencies of pyproject.toml anew, for all Python versions
	$(UV) $(LOCK) --upgrade pyproject.toml --output-file requirements.lock

.PHONY: clean
clean: ## remove the environment, caches and build results; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .ruff_cache tests/.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(HAS_UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "learned_opt needs Python 3.11 or newer, but $(PYTHON) is $(or $(PYTHON_VERSION),not there)." >&2; \
	  echo "Name another one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock uv
	@touch $@

$(COMPLETE): requirements.lock pyproject.toml | $(HAS_UV)
	@rm -f $@
	$(UV) pip sync requirements.lock
	$(UV) pip install --no-deps --no-build-isolation --editable .
	@touch $@
