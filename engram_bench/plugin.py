"""pytest hooks, each a few lines that hand over: options to `options`, records to `session`, tables to `report`."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engram_bench import backends
from engram_bench.errors import UsageError

if TYPE_CHECKING:
    from engram_bench.options import Settings
    from engram_bench.session import Session

_settings = pytest.StashKey["Settings"]()
_records = pytest.StashKey["list[dict[str, Any]]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    from engram_bench.options import OPTIONS

    group = parser.getgroup("engram", "engram_bench: what is Engram-style memory worth")
    for option in OPTIONS:
        kind: dict[str, Any] = {"action": "store_true", "default": None} if option.flag else {"metavar": "VALUE"}
        group.addoption(f"--engram-{option.name}", dest=option.dest, help=option.help, **kind)
        parser.addini(option.dest, option.help, default="")


def pytest_configure(config: pytest.Config) -> None:
    for name in backends.NAMES:
        config.addinivalue_line("markers", f"{name}: measured on this backend; `-m {name}` chooses it")
    config.addinivalue_line("markers", "splits(*names): the splits a `cell` test is for, all of them unless marked")
    config.stash[_records] = []
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector(config), "engram-collector")


def settings_of(config: pytest.Config) -> Settings:
    """The run's settings, checked when a suite first needs them; bad input ends the run: one line, exit code 2."""
    if _settings not in config.stash:
        from engram_bench.options import check_writable, settle

        try:
            settings = settle(vars(config.option), config.getini, config.option.markexpr)
            check_writable(settings.report)
            config.stash[_settings] = settings
        except UsageError as error:
            pytest.exit(str(error), returncode=2)
    return config.stash[_settings]


def emit(config: pytest.Config, record: dict[str, Any]) -> None:
    """Put a record on the report of the test that is running; that is how it reaches the collector from a worker."""
    config.stash[_records].append(record)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    records = item.config.stash[_records]
    report.engram_records = records[:]  # type: ignore[attr-defined]
    records.clear()
    return report


class Collector:
    """Lives in the process that writes the report: the only one, or the controller of an xdist run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.started = config, time.time()
        self.session: Session | None = None
        self.folder: Path | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for record in getattr(report, "engram_records", ()):
            if self.session is None:
                from engram_bench.session import Session

                argv = ["pytest", *map(str, self.config.invocation_params.args)]
                self.session = Session(settings_of(self.config), argv, self.started)
            self.session.add(record)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, object, object]:
        if self.session is not None:
            self.folder = self.session.finish(complete=exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))
        result = yield
        if exitstatus == pytest.ExitCode.INTERRUPTED:
            session.exitstatus = exitstatus  # syrupy adds 1 for the snapshots that a run broken off did not get to
        return result

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.session is not None and self.folder is not None:
            from engram_bench.report.terminal import write_summary

            write_summary(terminalreporter, self.folder, self.session.report)
