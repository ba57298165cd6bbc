"""pytest hooks, each a few lines that hand over: options to `options`, records to `session`, tables to `report`."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engram_bench import backends
from engram_bench.errors import UsageError

if TYPE_CHECKING:
    from engram_bench.options import Settings
    from engram_bench.run.session import Session

_settings = pytest.StashKey["Settings"]()
_baseline = pytest.StashKey["dict[str, Any] | None"]()


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
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector(config), "engram-collector")


def settings_of(config: pytest.Config) -> Settings:
    """The run's settings, checked before anything is collected; bad input ends the run: one line, exit code 2."""
    if _settings not in config.stash:
        from engram_bench.options import check_writable, settle

        try:
            settings = settle(vars(config.option), config.getini, config.option.markexpr)
            check_writable("--engram-report", settings.report)
            if settings.gate and settings.gate_update:
                check_writable("--engram-gate", settings.gate.parent)
            config.stash[_baseline] = _read_baseline(settings)
            config.stash[_settings] = settings
        except UsageError as error:
            pytest.exit(str(error), returncode=error.exit_code)
    return config.stash[_settings]


def _read_baseline(settings: Settings) -> dict[str, Any] | None:
    """What the gate compares with; a missing one, or one of other data, ends a run before anything is trained."""
    if settings.gate is None or settings.gate_update:
        return None
    from engram_bench.report import gate

    baseline = gate.read(settings.gate)
    gate.refuse(baseline, {"dataset": settings.patterns.sha256}, str(settings.gate))
    return baseline


def check_baseline(config: pytest.Config, meta: dict[str, Any]) -> None:
    """Refuse a baseline of another model or prompt, as soon as this run's are known."""
    settings, baseline = settings_of(config), config.stash[_baseline]
    if baseline is not None:
        from engram_bench.report import gate

        gate.refuse(baseline, gate.fingerprints(meta), str(settings.gate))


def announce(config: pytest.Config, record: dict[str, Any]) -> None:
    """Tell the collector now, from an xdist worker too: as a test report of its own, because that of the test that is
    running is sent when it ends, which may be minutes later."""
    nodeid = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    report = pytest.TestReport(nodeid, (nodeid, None, nodeid), {}, "passed", None, "setup")
    report.engram_record = record  # type: ignore[attr-defined]
    config.hook.pytest_runtest_logreport(report=report)


def end_run(config: pytest.Config, error: UsageError) -> None:
    """End the run with the error's one line and exit code; a worker has the process that controls it do so."""
    if hasattr(config, "workerinput"):
        announce(config, {"type": "error", "message": str(error), "exit_code": error.exit_code})
        pytest.fail(str(error), pytrace=False)
    pytest.exit(str(error), returncode=error.exit_code)


class Collector:
    """Lives in the process that writes the report: the only one, or the controller of an xdist run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.started = config, time.time()
        self.session: Session | None = None
        self.reported = self.complete = self.stopped = False
        self.lost: list[str] = []  # workers that died, tests that broke

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["engram_started"] = self.started
        node.workerinput["engram_grouped"] = self.config.option.dist == "loadgroup"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if error:
            self.lost.append(
                f"worker {node.gateway.id} died; a killed process loses what it was at, no finished result"
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = getattr(report, "engram_record", {"type": None})
        if record["type"] == "error":
            pytest.exit(record["message"], returncode=record["exit_code"])
        if record["type"] == "unfinished":
            self.lost.append(record["message"])
        if record["type"] == "run" and self.session is None:
            self._open(record)

    def _open(self, record: dict[str, Any]) -> None:
        """The first process of the run has its model loaded: say what it runs on."""
        from engram_bench.backends import gpus
        from engram_bench.report import terminal
        from engram_bench.run.rundir import RunDir
        from engram_bench.run.session import Session

        settings, baseline = settings_of(self.config), self.config.stash[_baseline]
        run = RunDir(Path(record["folder"]), record["id"], record["started"])
        self.session = Session(settings, ["pytest", *map(str, self.config.invocation_params.args)], run, baseline)
        if self.config.pluginmanager.hasplugin("dsession"):
            reporter: Any = self.config.pluginmanager.getplugin("terminalreporter")
            reporter.write("\n")  # letters of tests may stand on this line
            backend = record["meta"]["backend"]
            reporter.write_line(terminal.header(settings, backend))
            count = max(1, len(gpus.available(os.environ)))  # Apple's is one, and not in NVIDIA's list
            if told := gpus.note(backend["device"], len(self.config.option.tx), count):
                reporter.write_line(told)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, object, object]:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        self.stopped = bool(session.shouldfail)  # by -x or --maxfail
        self.complete = ended and not (self.stopped or session.shouldstop or self.lost)
        if self.session is not None:
            if self.complete and not self.session.whole():
                self.complete = False
                self.lost.append(
                    "some cells have a part of their answers: a run is taken up with the tests it was begun with"
                )
            try:
                self.reported = self.session.finish(complete=self.complete)
            except UsageError as error:
                if self.complete:  # a run that was broken off has told its reason
                    pytest.exit(str(error), returncode=error.exit_code)
        result = yield
        if exitstatus == pytest.ExitCode.OK and self.session is not None:
            session.exitstatus = self.session.exit_code()
        if exitstatus == pytest.ExitCode.INTERRUPTED or self.lost:
            session.exitstatus = pytest.ExitCode.INTERRUPTED  # syrupy adds 1 for the snapshots a run did not get to
        return result

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.session is None:
            return
        from engram_bench.report.terminal import write_broken_off, write_summary

        folder, report = self.session.run.folder, self.session.report
        if self.reported and report:
            write_summary(terminalreporter, folder, report)
        if not self.complete and folder.is_dir():
            write_broken_off(terminalreporter, folder, self.lost, self.stopped)
