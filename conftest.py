"""Suites and tests share fixtures.bench (fixtures, collection); options and reports are in engram_bench.plugin."""

pytest_plugins = ["fixtures.bench"]
