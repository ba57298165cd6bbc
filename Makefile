# Each command first installs what it needs, in the virtual environment .venv. `make compare` installs the tools that it
# compares with in .venv-peers. `make test-no-torch` has an environment for each Python version.
PYTHON ?= python3
PROFILE ?= default
BENCH_ARGS ?=
DEMO_ARGS ?=
MAC_ARGS ?=
COMPARE_ARGS ?=
BIN := .venv/bin

# Runs only when an environment is created. Any Python may run it, so the code is valid in Python 2.7 too.
VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
NEW_ENOUGH = $(shell $(PYTHON) -c 'import sys; print("yes" if sys.version_info >= (3, 11) else "")' 2>/dev/null)
TOO_OLD = engram-bench needs Python 3.11 or newer; $(PYTHON) is $(or $(VERSION),not installed)
check-python = $(if $(NEW_ENOUGH),,$(error $(TOO_OLD): make PYTHON=python3.11 $(MAKECMDGOALS)))

.PHONY: install bench demo compare mac test test-slow test-no-torch lint clean help

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

bench: .venv/installed ## train and evaluate on the real model, write the report (PROFILE=quick, BENCH_ARGS=more options)
	$(BIN)/engram-bench model
	$(BIN)/pytest suites --engram-profile $(PROFILE) $(BENCH_ARGS)

demo: .venv/installed ## a few prompts side by side, for a recording (DEMO_ARGS="--quick --no-pause")
	$(BIN)/engram-bench model
	$(BIN)/engram-bench demo $(DEMO_ARGS)

compare: .venv/installed .venv-peers/installed ## compare speed and training with other tools (COMPARE_ARGS="--items 40 --repeats 1")
	$(BIN)/engram-bench model
	$(BIN)/python benchmarks/compare.py $(COMPARE_ARGS)

# MAC_ARGS: further steps of benchmarks/gpu_kit.sh.
mac: .venv/installed ## run the suites by MLX on a Mac, and put what can be sent in into mac-results/ (MAC_ARGS=default)
	$(BIN)/engram-bench model
	PYTHON=$(BIN)/python DEVICE=mlx KIT=mac-kit COLLECT=mac-results LIMIT=3600 benchmarks/gpu_kit.sh run smoke quick $(MAC_ARGS)

install: .venv/installed ## install the packages into .venv

# A tiny model gains nothing from threads, so each process uses one.
test: .venv/installed ## the package's own tests
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m "not slow" -n 2 --dist worksteal

test-slow: .venv/installed ## the slow tests: whole runs killed and resumed, simulations, fuzzing
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m slow

.SECONDEXPANSION:
NO_TORCH = $(check-python).venv-no-torch-$(VERSION)
test-no-torch: $$(NO_TORCH)/installed ## the tests that need no torch, in an environment without it (PYTHON=python3.13)
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
