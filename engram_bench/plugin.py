"""pytest hooks of the bench; other modules do the work.

Every pytest run in the environment loads this module and the fixtures, even if it does not use the bench. So neither
imports anything slow, and neither affects other runs.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from engram_bench import backends
from engram_bench.errors import MissingBackendError
from engram_bench.run.collector import Collector
from engram_bench.run.invocation import FIXTURES, is_ours, one_line_errors, refuse, settings_of, uses

pytest_plugins = [FIXTURES, "engram_bench.fixtures.collection"]


def pytest_addoption(parser: pytest.Parser) -> None:
    from engram_bench.options import OPTIONS

    group = parser.getgroup("engram", "engram_bench: measure what Engram-style memory adds to a model")
    for option in OPTIONS:
        kind: dict[str, Any] = {"action": "store_true", "default": None} if option.flag else {"metavar": "VALUE"}
        group.addoption(f"--engram-{option.name}", dest=option.dest, help=option.help, **kind)
        parser.addini(option.dest, option.help, default="")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run that ends early leaves snapshots unused; without this, syrupy would advise to delete them."""
    whole = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if is_ours(session.config) and (not whole or session.shouldfail or session.shouldstop):
        session.config.option.disable_unused_snapshots = True


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for name in backends.NAMES:
        config.addinivalue_line("markers", f"{name}: runs on this backend; `-m {name}` selects it")
    config.addinivalue_line("markers", "splits(*names): measure `cell` in these splits only")
    above = "above(variant): `cell` of the variants with thresholds only, and only if the run has this other variant"
    config.addinivalue_line("markers", above)
    if hasattr(config, "workerinput"):
        if config.workerinput["engram_grouped"]:  # workers parse the original --dist
            config.option.loadgroup = True
    else:
        config.pluginmanager.register(Collector(config), "engram-collector")
        if is_ours(config):
            _set_up_xdist(config.option)


def _set_up_xdist(option: Any) -> None:
    """Under xdist, keep each group of tests on one worker, and end the run if a worker dies."""
    if getattr(option, "dist", "no") == "load":
        option.dist = "loadgroup"
        if option.maxworkerrestart is None:
            option.maxworkerrestart = "0"


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Check the options before collection if the run clearly uses the bench."""
    if is_ours(session.config):
        settings_of(session.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, object]:
    """End the run if the settings are invalid; a user's own test module may be the first to read them."""
    report = yield
    refuse(collector.config)
    return report


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """The header line: backend, dtype and its reason, model, profile; None if no test uses the bench."""
    if config.option.collectonly or not any(uses(item, "bench") for item in items):
        return None
    settings = settings_of(config)
    with one_line_errors(config):
        try:
            target = backends.find(settings.backend, settings.lora_engine)
        except MissingBackendError as error:
            return f"engram_bench: skipping all tests of the bench: {error}"
    from engram_bench.report.terminal import header

    return header(settings, {"name": target.framework, **vars(target)})
