# Two commands do all their own set-up: `make bench` and `make test`. They share one virtual environment, .venv.
PYTHON ?= python3
PROFILE ?= default
BENCH_ARGS ?=
DEMO_ARGS ?=
BIN := .venv/bin

.PHONY: bench demo test test-slow lint clean help

help: ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

bench: .venv/installed ## train and measure on the real model, write the report (PROFILE=quick|default|full, BENCH_ARGS=more options)
	$(BIN)/engram-bench model
	$(BIN)/pytest suites --engram-profile $(PROFILE) $(BENCH_ARGS)

demo: .venv/installed ## a few prompts side by side, for a recording (DEMO_ARGS="--quick --no-pause")
	$(BIN)/engram-bench model
	$(BIN)/engram-bench demo $(DEMO_ARGS)

# A tiny model gains nothing from threads, so each process has one.
test: .venv/installed ## the package's own tests
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m "not slow" -n 2

test-slow: .venv/installed ## whole runs killed and taken up again, simulations, fuzzing
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m slow

lint: .venv/installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean: ## remove the environment; models and adapters stay in the user's cache folder
	rm -rf .venv
