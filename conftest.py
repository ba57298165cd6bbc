"""Checks that the package is installed: its pytest plugin, engram_bench/plugin.py, has the options and fixtures."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config.option, "engram_profile"):
        pytest.exit("engram_bench is not installed in this environment; run: pip install -e .", returncode=2)
