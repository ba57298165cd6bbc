"""The commands in README and docs: each is one that exists, with options that exist, and those on own facts run."""

import re
import shlex
import shutil
import subprocess

import pytest

from engram_bench import cli, options
from tests.conftest import needs_torch
from tests.running import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = re.compile(r"(?:[A-Z]+=\S+ )*(?:\.venv/bin/)?(engram-bench|pytest|make|benchmarks/gpu_kit\.sh) ")


def commands(text):
    """Argument lists of the commands in a page's blocks, without what comes before the program."""
    for block in BLOCK.findall(text):
        for line in block.splitlines():
            if PROGRAMS.match(line):
                words = shlex.split(line, comments=True)
                start = next(n for n, word in enumerate(words) if "=" not in word)
                yield (words[start].removeprefix(".venv/bin/"), *words[start + 1 :])


FOUND = {(page.name, *command) for page in PAGES for command in commands(page.read_text("utf-8"))}


def test_the_pages_hold_commands_of_every_program():
    assert {command[0] for _, *command in FOUND} == {"engram-bench", "pytest", "make", "benchmarks/gpu_kit.sh"}


@pytest.mark.parametrize("command", sorted(FOUND), ids=" ".join)
def test_every_command_exists_with_its_options(command):
    _, program, *words = command
    if program == "engram-bench" and words[:1] != ["bench"]:
        cli._parser().parse_args(words)
    elif program in ("pytest", "engram-bench"):
        known = {f"--engram-{option.name}" for option in options.OPTIONS}
        assert {word for word in words if word.startswith("--engram-")} <= known
        profile = words[words.index("--engram-profile") + 1] if "--engram-profile" in words else "quick"
        assert profile in options.PROFILES
        assert words[0] in ("suites", "bench", "-m")
    elif program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
        assert {word for word in words if "=" not in word} <= targets
    else:
        assert program == "benchmarks/gpu_kit.sh"
        assert words[0] in ("pack", "unpack", "run", "collect")


@needs_torch
@pytest.mark.slow
def test_the_commands_on_own_facts_run_one_after_the_other(checkpoint, own_cache, tmp_path, monkeypatch, capfd):
    """docs/facts.md from top to bottom, in an empty folder that holds its two tables and its questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rows = [f"the door code of the {place} gate,code {n}{n}" for n, place in enumerate(["east", "west", "old", "red"])]
    (tmp_path / "desk.csv").write_text("\n".join(["key,value", *rows]) + "\n")
    (tmp_path / "new.csv").write_text("key,value\nthe lift,code 3\n")
    (tmp_path / "questions.txt").write_text("the door code of the east gate\n")
    model = ["--backend", "cpu", "--model", str(checkpoint)]
    unlearned = 0
    for _, *words in commands((ROOT / "docs" / "facts.md").read_text("utf-8")):
        taken = {"facts": [*model, "--variants", "baseline,lora,engram-keyed"], "list": [], "export": []}
        code = cli.main([*words, *taken.get(words[0], model)])
        said = capfd.readouterr()
        if words[0] == "write":  # a tiny random model may not learn a fact in the steps that writing takes
            assert code in (0, 1), said
            unlearned += code
        else:
            assert code == 0, (words, said)
    assert (tmp_path / "desk-mlx" / "adapters.safetensors").is_file()
    assert unlearned < 2


def test_every_test_that_a_page_names_exists():
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text("utf-8"))}
    there = {
        name
        for file in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text("utf-8"))
    }
    assert named <= there
    assert named


def test_every_page_that_is_linked_exists():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_shell_scripts_that_pages_name_are_valid():
    assert subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu_kit.sh")]).returncode == 0
