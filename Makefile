# Bare `make` lists the targets. Everything runs in .venv, which `make setup` creates from locked versions.

PYTHON ?= python3
BIN := .venv/bin
HOME_DIR ?= .featurestore
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup services demo test serve check bench bench-online bench-offline bench-ingest bench-stream crash lock format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: .venv/.installed ## Create .venv from locked versions

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

services: ## Install the servers, clients and the compiler that tests need, where that is possible
	@sh tests/redis/install.sh
	@sh tests/kafka/install.sh
	@sh tests/bench/install.sh
	@PYTHON=$(PYTHON) sh tests/clients/install.sh

demo: setup ## See it work on a year of flights and weather
	$(BIN)/featurestore demo

serve: setup ## Run the service on http://127.0.0.1:8080 until Ctrl-C
	$(BIN)/featurestore serve --home $(HOME_DIR)

test: ## Run every test
	@$(MAKE) --no-print-directory -j 2 setup services
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile

check: setup ## Lint, types and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/unit

crash: setup ## The long crash runs (the suite has a shorter one)
	CRASH_ROUNDS=$${CRASH_ROUNDS:-50} $(BIN)/pytest -q tests/crash

bench: setup services ## The benchmarks in canonical size; results are appended to docs/benchmarks.ndjson
	$(BIN)/python -m tests.bench

bench-online: setup services ## Those of records over HTTP, on Redis and embedded
bench-offline: setup services ## Those of training sets and of the offline store
bench-ingest: setup services ## Those of writing dataframes
bench-stream: setup services ## Those of Kafka, and from a write to a training set
bench-online bench-offline bench-ingest bench-stream:
	$(BIN)/python -m tests.bench --kind $(@:bench-%=%)

lock: setup ## Resolve dependencies anew into requirements.lock (needs uv)
	uv pip compile --universal --python-version 3.11 --all-extras --generate-hashes --no-emit-index-url --no-header --no-annotate -q pyproject.toml -o requirements.lock
	sh tests/clients/lock.sh

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build demo-output
