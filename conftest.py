"""Options, fixtures and reports come with the installed package, as its pytest plugin; see engram_bench/plugin.py."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config.option, "engram_profile"):
        pytest.exit("engram_bench is not installed in this environment; run: pip install -e .", returncode=2)
