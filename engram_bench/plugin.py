"""pytest hooks of the bench, each a few lines that hand over. Every pytest run of an environment loads this and the
fixtures: neither imports anything that takes time, and a run that does not use the bench stays as it is."""

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

    group = parser.getgroup("engram", "engram_bench: what is Engram-style memory worth")
    for option in OPTIONS:
        kind: dict[str, Any] = {"action": "store_true", "default": None} if option.flag else {"metavar": "VALUE"}
        group.addoption(f"--engram-{option.name}", dest=option.dest, help=option.help, **kind)
        parser.addini(option.dest, option.help, default="")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for name in backends.NAMES:
        config.addinivalue_line("markers", f"{name}: measured on this backend; `-m {name}` chooses it")
    config.addinivalue_line("markers", "splits(*names): the splits a `cell` test is for, all of them unless marked")
    if hasattr(config, "workerinput"):
        if config.workerinput["engram_grouped"]:  # it reads the command line anew, where no --dist is given
            config.option.loadgroup = True
    else:
        config.pluginmanager.register(Collector(config), "engram-collector")
        if is_ours(config):
            _set_up(config.option)


def _set_up(option: Any) -> None:
    """Under xdist, groups of tests keep together, and a worker that died is not replaced: the run says so and ends."""
    if getattr(option, "dist", "no") == "load":
        option.dist = "loadgroup"
        if option.maxworkerrestart is None:
            option.maxworkerrestart = "0"


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Check the options before anything is collected, if the run is sure to need them."""
    if is_ours(session.config):
        settings_of(session.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, object]:
    """Settings that a module of somebody's own was the first to ask for may have been refused."""
    report = yield
    refuse(collector.config)
    return report


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """The header line: backend, dtype and why, model, profile."""
    if config.option.collectonly or not any(uses(item, "bench") for item in items):
        return None
    settings = settings_of(config)
    with one_line_errors(config):
        try:
            target = backends.find(settings.backend, settings.lora_engine)
        except MissingBackendError as error:
            return f"engram_bench: all is skipped: {error}"
    from engram_bench.report.terminal import header

    return header(settings, {"name": target.framework, **vars(target)})
