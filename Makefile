# One command per task. Everything runs in .venv, which `make setup` makes.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.requirements-cpu.sha256
LOG := $(VENV)/setup.log
TORCH := $(shell sed -n 's/^torch==//p' requirements-cpu.txt)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
SYSTEM_PYTHON := $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)

.PHONY: help setup demo experiments test test-fast test-real lint format

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## .venv with the locked CPU environment (4 GB, about two minutes)

demo: $(STAMP)  ## self-play with real vLLM, PairRM and DeepSpeed on two CPU cores, and a report
	$(PYTHON) -m recipes.demo

experiments: $(STAMP)  ## the measurements behind what README and docs claim
	$(PYTHON) -m recipes.experiments.run

test: test-fast test-real  ## every test

test-fast: $(STAMP)  ## the tests without real engines
	$(PYTHON) -m pytest -m "not real" --numprocesses auto --dist loadfile

test-real: $(STAMP)  ## those that start Ray, vLLM and DeepSpeed
	$(PYTHON) -m pytest -m real

lint: $(STAMP)  ## style, formatting and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy engine actors cluster

format: $(STAMP)  ## fix style and formatting
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# The stamp has the lock's digest, not its date, so that a new clone with an existing environment is not set up again.
# torch is installed first and by the version of its CPU build; `torch==2.13.0` alone could install the CUDA build.
# pip warns once per request about each of its configured locations that does not exist; those lines stay in the log.
$(STAMP): requirements-cpu.txt pyproject.toml
	@test -n "$(SYSTEM_PYTHON)" || { echo "Kumite needs Python 3.11 or newer as python3.11 or python3 on the PATH."; exit 1; }
	@digest=$$(cat requirements-cpu.txt pyproject.toml | sha256sum | cut -d' ' -f1); \
	if [ "$$(cat $@ 2>/dev/null)" = "$$digest" ]; then touch $@; exit 0; fi; \
	started=$$(date +%s); mkdir -p $(VENV); : > $(LOG); \
	step() { \
		echo "$$1 ..."; echo "== $$1" >> $(LOG); shift; \
		"$$@" >> $(LOG) 2>&1 && return; \
		awk '/^== / {text = ""} !/^WARNING: Location/ {text = text $$0 "\n"} END {printf "%s", text}' $(LOG) >&2; \
		echo "Setting up $(VENV) failed; everything that pip said is in $(LOG)." >&2; exit 1; \
	}; \
	venv() { test -x $(PYTHON) || "$(SYSTEM_PYTHON)" -m venv $(VENV); }; \
	install() { $(PYTHON) -m pip install -q --no-deps "$$@"; }; \
	torch() { install "torch==$(TORCH)+cpu" || install --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH)"; }; \
	echo "Setting up $(VENV), 4 GB, about two minutes"; \
	step "1/4 a virtual environment" venv; \
	step "2/4 torch $(TORCH) for CPUs (200 MB)" torch; \
	step "3/4 $$(grep -c '^[A-Za-z]' requirements-cpu.txt) locked packages" install -r requirements-cpu.txt; \
	step "4/4 kumite itself" install --no-build-isolation --editable .; \
	echo "$$digest" > $@; \
	echo "done in $$(($$(date +%s) - started)) s"
