# One command for each thing that people do here. Everything runs in .venv, which `make setup` makes.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.requirements-cpu.sha256
TORCH := $(shell sed -n 's/^torch==//p' requirements-cpu.txt)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
SYSTEM_PYTHON := $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)

.PHONY: help setup demo experiments test test-fast lint format

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## .venv with the locked CPU environment (4 GB, about two minutes)

demo: $(STAMP)  ## self-play with real vLLM, PairRM and DeepSpeed on two CPU cores, and a report
	$(PYTHON) -m recipes.demo

experiments: $(STAMP)  ## the measurements behind what README and docs claim
	$(PYTHON) -m recipes.experiments.run

test: $(STAMP)  ## every test, also those that start Ray, vLLM and DeepSpeed
	$(PYTHON) -m pytest

test-fast: $(STAMP)  ## the tests that take milliseconds
	$(PYTHON) -m pytest -m "not real"

lint: $(STAMP)  ## style, formatting and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy engine

format: $(STAMP)  ## mend style and formatting
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# The stamp holds the lock's digest rather than its date: a fresh clone or a linked environment is not set up again.
# torch comes first and by its CPU build's own version; `torch==2.13.0` alone could bring the CUDA build.
$(STAMP): requirements-cpu.txt
	@test -n "$(SYSTEM_PYTHON)" || { echo "Kumite needs Python 3.11 or newer as python3.11 or python3 on the PATH."; exit 1; }
	@set -e; wanted=$$(sha256sum requirements-cpu.txt | cut -d' ' -f1); \
	if [ "$$(cat $@ 2>/dev/null)" = "$$wanted" ]; then touch $@; exit 0; fi; \
	test -x $(PYTHON) || "$(SYSTEM_PYTHON)" -m venv $(VENV); \
	echo "Installing the locked CPU environment into $(VENV) ..."; \
	$(PYTHON) -m pip install -q --no-deps "torch==$(TORCH)+cpu" 2>/dev/null || \
		$(PYTHON) -m pip install -q --no-deps --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH)"; \
	$(PYTHON) -m pip install -q --no-deps -r requirements-cpu.txt; \
	$(PYTHON) -m pip install -q --no-deps --no-build-isolation --editable .; \
	echo "$$wanted" > $@
