"""The wheel, installed where no checkout is: its suites, its data, and its fixtures in somebody's own tests."""

import json
import shutil
import subprocess
import sys
import sysconfig

import pytest

from engram_bench import variants
from tests.conftest import ENGRAM, LORA, PATTERNS
from tests.running import ROOT, environment

SOURCES = ("engram_bench", "fixtures", "patterns", "suites", "LICENSE", "README.md", "pyproject.toml")
OWN_TESTS = """\
def test_answers(cell):
    assert cell.samples

def test_adapters(bench, variant):
    assert bench.adapter(variant) is not None

def test_categories(bench, category):
    assert category in bench.settings.patterns.categories
"""


def check(*command, **more):
    """Output of a command that has to succeed."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **more)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def env(**more):
    """The environment without a checkout to import from."""
    return {name: value for name, value in environment(**more).items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """site-packages of an environment with the wheel, and with the libraries of the running one.

    A path file names their folder. Path files in there are not followed, so an editable engram_bench is not seen.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source, home = folder / "source", folder / "environment"
    source.mkdir()
    for name in SOURCES:  # copied: into a wheel goes what an earlier build has left in build/, too
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    check(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    check(sys.executable, "-m", "venv", "--without-pip", home)
    check(*pip, "--python", home, "install", "--no-deps", *folder.glob("*.whl"))
    (found,) = home.glob("lib/python*/site-packages")
    (found / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


@pytest.fixture
def installed(packages, checkpoint, tmp_path):
    """Runs a command of that environment in an empty folder; variables ask for a small run."""
    for name, text in (("colours", PATTERNS), ("engram", ENGRAM), ("lora", LORA)):
        (tmp_path / f"{name}.yaml").write_text(text)
    given = env(
        ENGRAM_BENCH_PROFILE="smoke",
        ENGRAM_BENCH_BACKEND="cpu",
        ENGRAM_BENCH_MODEL=str(checkpoint),
        ENGRAM_BENCH_PATTERNS=str(tmp_path / "colours.yaml"),
        ENGRAM_BENCH_VARIANTS=f"{tmp_path}/engram.yaml,{tmp_path}/lora.yaml",
        ENGRAM_BENCH_CACHE=str(packages.parents[2] / "cache"),
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    commands = packages.parents[2] / "bin"
    return lambda command, *args: check(commands / command, *args, cwd=empty, env=given)


def files(folder):
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_the_suites_run_and_leave_a_report_where_they_are_run(installed, packages, checkpoint, tmp_path):
    """An ini file further up counts, and is no reason to go there; nor is a folder that an option names."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    assert installed("python", "-c", "import engram_bench; print(engram_bench.__file__)").startswith(str(packages))
    before = files(packages)
    told = installed("engram-bench", "bench", "--engram-profile", "smoke", "--engram-model", checkpoint)
    assert f"rootdir: {tmp_path / 'empty'}" in told
    assert "configfile: ../pytest.ini" in told
    assert "is deprecated" not in told
    report = json.loads((tmp_path / "empty" / "reports" / "runs" / "latest" / "report.json").read_text("utf-8"))
    assert report["run"]["complete"]
    assert {cell["variant"] for cell in report["cells"]} == {"baseline", "tiny-engram", "tiny-lora"}
    assert (tmp_path / "empty" / ".pytest_cache").is_dir()
    assert files(packages) == before


def test_a_place_that_cannot_take_results_is_one_line(packages, tmp_path):
    """Also where a test of somebody's own is the first to ask for the bench, after others were collected."""
    (tmp_path / "reports").touch()
    (tmp_path / "test_a.py").write_text("def test_it():\n    pass\n")
    (tmp_path / "test_own.py").write_text(OWN_TESTS)
    command = [packages.parents[2] / "bin" / "python", "-m", "pytest", "-p", "no:hypothesispytest", "-p", "no:anyio"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env())
    assert result.returncode == 2
    (told,) = [line for line in (result.stdout + result.stderr).splitlines() if "reports" in line]
    assert "--engram-report: reports/runs: Not a directory; choose another folder" in told


def test_rungs_and_ablations_are_there(installed):
    count = "from engram_bench import variants; print(len(variants.select('ladder,ablations')))"
    assert int(installed("python", "-c", count)) == 1 + len({*variants.LADDER, *variants.ABLATIONS})


def test_the_shipped_patterns_are_written_as_lines(installed, tmp_path):
    assert "facts" in installed("engram-bench", "data", "--out", tmp_path / "lines")
    assert len((tmp_path / "lines" / "train.jsonl").read_text("utf-8").splitlines()) > 150


def test_the_example_for_lm_eval_is_there(installed):
    code = "from engram_bench.data import lm_eval_tasks as t; print(sorted(f.suffix for f in t.EXAMPLE.iterdir()))"
    assert installed("python", "-c", code) == "['.jsonl', '.yaml']\n"


def test_somebodys_own_tests_have_the_fixtures(installed, tmp_path):
    (tmp_path / "empty" / "test_own.py").write_text(OWN_TESTS)
    told = installed("python", "-m", "pytest", "-n", "2", "-p", "no:hypothesispytest", "-p", "no:anyio")
    assert "18 passed" in told, "three variants in the five ways that so few items have, two adapters, a category"
    assert "reliability" in told, "the scorecard"
