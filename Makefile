# `make` alone, or `make help`, lists what there is. The first target that needs it makes .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/tools
TESTS ?=
JOBS ?= 3
ARGS ?=

.DEFAULT_GOAL := help
# each of the many processes of a fleet, or of the tests, would compile all of the code anew
unexport PYTHONDONTWRITEBYTECODE
.DELETE_ON_ERROR:
.PHONY: help up test check format bench lock clean

help: ## show this page
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(READY) ## run the whole fleet here: PORT=8080, INFERENCE_WORKERS=1, FLEET_HOME=.fleet
	@$(BIN)/fleet up

test: $(READY) ## run the tests, JOBS=3 at a time, on servers of their own: TESTS="tests/domain -k ledger"
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadscope $(TESTS)

check: $(READY) ## lint, formatting, types; the house rules are among the tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## format the code and sort the imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY) ## measure latency, throughput, CPU and memory: ARGS="--help"
	@$(BIN)/python -m tests.bench $(ARGS)

lock: ## resolve the dependencies anew into the lock files: ARGS="--upgrade"
	@test -x $(TOOLS)/bin/uv || { $(PYTHON) -m venv $(TOOLS) && $(TOOLS)/bin/python -m pip install --quiet uv; }
	@$(COMPILE) --output-file requirements.lock
	@$(COMPILE) --group dev --constraint requirements.lock --output-file requirements-dev.lock

COMPILE = $(TOOLS)/bin/uv pip compile pyproject.toml $(ARGS) --quiet --universal \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-header

clean: ## remove .venv and the caches; the data in .fleet stays
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements-dev.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed. Ainfera needs Python 3.11 or later; choose one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Ainfera needs Python 3.11 or later and $(PYTHON) is %d.%d; choose another with: make PYTHON=/path/to/python3" % sys.version_info[:2])'
	@echo "==> Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> Installing $$(grep -c == requirements-dev.lock) locked packages"
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	@echo "==> Installing the fleet command"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "==> Ready"
