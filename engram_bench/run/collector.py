"""Collects what a pytest run measures, and makes its report at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engram_bench.errors import UsageError
from engram_bench.run.invocation import baseline_of, settings_of

if TYPE_CHECKING:
    from engram_bench.run.session import Session


class Collector:
    """A pytest plugin for the process that writes the report: the only process, or the controller of an xdist run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.started = config, time.time()
        self.session: Session | None = None
        self.reported = self.complete = self.stopped = False
        self.lost: list[str] = []  # why the run is incomplete: a worker died, a test raised an error

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["engram_started"] = self.started
        node.workerinput["engram_grouped"] = self.config.option.dist == "loadgroup"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        if error:
            self.lost.append(
                f"worker {node.gateway.id} died; only its current batch or training is lost, finished results are saved"
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
        """Open the session when the first process has loaded the model; with xdist, also print the header."""
        from engram_bench.backends import gpus
        from engram_bench.report import terminal
        from engram_bench.run.rundir import RunDir
        from engram_bench.run.session import Session

        settings = settings_of(self.config)
        run = RunDir(Path(record["folder"]), record["id"], record["started"])
        argv = ["pytest", *map(str, self.config.invocation_params.args)]
        self.session = Session(settings, argv, run, baseline_of(self.config))
        if self.config.pluginmanager.hasplugin("dsession"):
            reporter: Any = self.config.pluginmanager.getplugin("terminalreporter")
            reporter.write("\n")  # pytest's progress letters may be on this line
            backend = record["meta"]["backend"]
            reporter.write_line(terminal.header(settings, backend))
            count = max(1, len(gpus.available(os.environ)))  # a Mac has one, which NVIDIA's list does not contain
            if note := gpus.note(backend["device"], len(self.config.option.tx), count):
                reporter.write_line(note)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, object, object]:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        self.stopped = bool(session.shouldfail)  # by -x or --maxfail
        self.complete = ended and not (self.stopped or session.shouldstop or self.lost)
        if self.session is not None:
            if self.complete and not self.session.whole():
                self.complete = False
                self.lost.append("some cells are only partly answered; resume with the original test selection")
            try:
                self.reported = self.session.finish(complete=self.complete)
            except UsageError as error:
                if self.complete:  # an interrupted run has already printed its reason
                    pytest.exit(str(error), returncode=error.exit_code)
        result = yield
        if exitstatus == pytest.ExitCode.OK and self.session is not None:
            session.exitstatus = self.session.exit_code()
        if exitstatus == pytest.ExitCode.INTERRUPTED or self.lost:
            session.exitstatus = pytest.ExitCode.INTERRUPTED  # syrupy sets 1 for snapshots of tests that did not run
        return result

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.session is None:
            return
        from engram_bench.report.terminal import write_interrupted, write_summary

        folder, report = self.session.run.folder, self.session.report
        if self.reported and report:
            write_summary(terminalreporter, folder, report)
        if not self.complete and folder.is_dir():
            write_interrupted(terminalreporter, folder, self.lost, self.stopped)
