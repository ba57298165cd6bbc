"""State of a pytest run, for hooks and fixtures: whether it uses the bench, its settings, and how it ends early."""

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
    """Whether an option of the bench is set in any way, or an argument is a path inside the shipped suites.

    Every pytest run in the environment loads the plugin. It must not change runs that are not ours.
    """
    from engram_bench.options import OPTIONS

    given = vars(config.option)
    if any(option.given(given, config.getini) for option in OPTIONS):
        return True
    folder = config.invocation_params.dir
    paths = [(folder / argument.partition("::")[0]).resolve() for argument in config.args]
    return any(path.is_relative_to(shipped.SUITES) for path in paths)


def uses(item: Any, fixture: str) -> bool:
    """Whether a test uses this fixture of the package, rather than another project's fixture of the same name."""
    info = getattr(item, "_fixtureinfo", None)
    found = info.name2fixturedefs.get(fixture) if info else None
    return found is not None and found[-1].func.__module__ == FIXTURES


def settings_of(config: pytest.Config) -> Settings:
    """The run's settings, validated on the first call; invalid ones end the run with one line and exit code 2 or 4."""
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
    """End the run if its settings are invalid.

    pytest treats an exit during the collection of a module as an error of that module only. So a hook calls this again
    after each collection.
    """
    if error := config.stash.get(_refusal, None):
        pytest.exit(str(error), returncode=error.exit_code)


def baseline_of(config: pytest.Config) -> dict[str, Any] | None:
    """The report that the gate compares with; None without a gate."""
    settings_of(config)
    return config.stash[_baseline]


def _read_baseline(settings: Settings) -> dict[str, Any] | None:
    """Read the gate's baseline, before any training.

    Raises:
        BaselineError: the baseline is missing, or has another dataset.
    """
    if settings.gate is None or settings.gate_update:
        return None
    from engram_bench.report import gate

    baseline = gate.read(settings.gate)
    gate.refuse(baseline, {"dataset": settings.patterns.sha256}, str(settings.gate))
    return baseline


def check_baseline(config: pytest.Config, meta: dict[str, Any]) -> None:
    """Raise a BaselineError if the baseline has another model or prompt; called once the model is loaded."""
    baseline = baseline_of(config)
    if baseline is not None:
        from engram_bench.report import gate

        gate.refuse(baseline, gate.fingerprints(meta), str(settings_of(config).gate))


def announce(config: pytest.Config, record: dict[str, Any]) -> None:
    """Send a record to the collector at once, also from an xdist worker.

    The record travels as an extra test report. The running test's own report is sent only when the test ends, which
    may be minutes later.
    """
    nodeid = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    report = pytest.TestReport(nodeid, (nodeid, None, nodeid), {}, "passed", None, "setup")
    report.engram_record = record  # type: ignore[attr-defined]
    config.hook.pytest_runtest_logreport(report=report)


def end_run(config: pytest.Config, error: UsageError) -> None:
    """End the run with the error's line and exit code; an xdist worker makes its controller do this."""
    if hasattr(config, "workerinput"):
        announce(config, {"type": "error", "message": str(error), "exit_code": error.exit_code})
        pytest.fail(str(error), pytrace=False)
    pytest.exit(str(error), returncode=error.exit_code)


@contextmanager
def one_line_errors(config: pytest.Config) -> Iterator[None]:
    """End the whole run on a UsageError, with its line and exit code."""
    try:
        yield
    except UsageError as error:
        end_run(config, error)
