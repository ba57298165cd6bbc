"""A pytest run as hooks and fixtures see it: whether it is one of the bench, what it is to do, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from engram_bench import shipped
from engram_bench.errors import UsageError

if TYPE_CHECKING:
    from engram_bench.options import Settings

FIXTURES = "engram_bench.fixtures.bench"

_settings = pytest.StashKey["Settings"]()
_baseline = pytest.StashKey["dict[str, Any] | None"]()
_refusal = pytest.StashKey[UsageError]()


def is_ours(config: pytest.Config) -> bool:
    """Whether an option of the bench is given, in whichever way, or an argument lies inside the shipped suites.

    The plugin is loaded in every pytest run of its environment. Runs that are not ours stay as they are.
    """
    from engram_bench.options import OPTIONS

    given = vars(config.option)
    if any(option.given(given, config.getini) for option in OPTIONS):
        return True
    folder = config.invocation_params.dir
    paths = [(folder / argument.partition("::")[0]).resolve() for argument in config.args]
    return any(path.is_relative_to(shipped.SUITES) for path in paths)


def uses(item: Any, fixture: str) -> bool:
    """Whether a test asks for a fixture of this package, and not for somebody else's of that name."""
    info = getattr(item, "_fixtureinfo", None)
    found = info.name2fixturedefs.get(fixture) if info else None
    return found is not None and found[-1].func.__module__ == FIXTURES


def settings_of(config: pytest.Config) -> Settings:
    """The run's settings, checked when first asked for; bad input ends the run: one line, exit code 2."""
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
            config.stash[_refusal] = error
            refuse(config)
    return config.stash[_settings]


def refuse(config: pytest.Config) -> None:
    """End the run if its settings were refused: an exit while a module is collected is only that module's error."""
    if error := config.stash.get(_refusal, None):
        pytest.exit(str(error), returncode=error.exit_code)


def baseline_of(config: pytest.Config) -> dict[str, Any] | None:
    """The report that the gate compares with."""
    settings_of(config)
    return config.stash[_baseline]


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
    baseline = baseline_of(config)
    if baseline is not None:
        from engram_bench.report import gate

        gate.refuse(baseline, gate.fingerprints(meta), str(settings_of(config).gate))


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


@contextmanager
def one_line_errors(config: pytest.Config) -> Iterator[None]:
    """A UsageError ends the whole run with its one line and its exit code."""
    try:
        yield
    except UsageError as error:
        end_run(config, error)
