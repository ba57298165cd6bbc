"""Suites and tests share the fixtures; the hooks of the harness itself are in engram_bench.plugin."""

pytest_plugins = ["fixtures.bench"]
