# Two commands do all their own set-up: `make bench` and `make test`. They share one virtual environment, .venv;
# `make compare` keeps what it compares with in another, .venv-peers, and `make test-no-torch` has one for each Python.
PYTHON ?= python3
PROFILE ?= default
BENCH_ARGS ?=
DEMO_ARGS ?=
COMPARE_ARGS ?=
BIN := .venv/bin

# Asked of any Python, 2.7 included, and only where an environment is to be made.
VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
NEW_ENOUGH = $(shell $(PYTHON) -c 'import sys; print("yes" if sys.version_info >= (3, 11) else "")' 2>/dev/null)
TOO_OLD = engram-bench needs Python 3.11 or newer; $(PYTHON) is $(or $(VERSION),not there)
check-python = $(if $(NEW_ENOUGH),,$(error $(TOO_OLD): make PYTHON=python3.11 $(MAKECMDGOALS)))

.PHONY: bench demo compare test test-slow test-no-torch lint clean help

help: ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

bench: .venv/installed ## train and measure on the real model, write the report (PROFILE=quick|default|full, BENCH_ARGS=more options)
	$(BIN)/engram-bench model
	$(BIN)/pytest suites --engram-profile $(PROFILE) $(BENCH_ARGS)

demo: .venv/installed ## a few prompts side by side, for a recording (DEMO_ARGS="--quick --no-pause")
	$(BIN)/engram-bench model
	$(BIN)/engram-bench demo $(DEMO_ARGS)

compare: .venv/installed .venv-peers/installed ## measure this project against its peers (COMPARE_ARGS="--items 40 --repeats 1")
	$(BIN)/engram-bench model
	$(BIN)/python benchmarks/compare.py $(COMPARE_ARGS)

# A tiny model gains nothing from threads, so each process has one.
test: .venv/installed ## the package's own tests
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m "not slow" -n 2 --dist worksteal

test-slow: .venv/installed ## whole runs killed and taken up again, simulations, fuzzing
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m slow

.SECONDEXPANSION:
NO_TORCH = $(check-python).venv-no-torch-$(VERSION)
test-no-torch: $$(NO_TORCH)/installed ## the tests that need no torch, without it (PYTHON=python3.13)
	OMP_NUM_THREADS=1 $(NO_TORCH)/bin/pytest tests -m "not slow" -n 2 --dist worksteal

lint: .venv/installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(check-python)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv-peers/installed: benchmarks/peers/requirements.txt constraints.txt
	$(check-python)
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement benchmarks/peers/requirements.txt
	@touch $@

.venv-no-torch-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-no-torch-$*
	.venv-no-torch-$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[test]'
	@touch $@

clean: ## remove the environments; models and adapters stay in the user's cache folder
	rm -rf .venv .venv-peers .venv-no-torch-*
