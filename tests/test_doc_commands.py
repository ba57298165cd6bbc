"""The commands in README and docs: each is one that exists, with options that exist, and runs."""

import re
import shlex
import shutil
import subprocess

import pytest

from engram_bench import cli, options
from engram_bench.run.command_line import suites
from tests.conftest import needs_torch
from tests.running import ROOT, run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = re.compile(
    r"(?:[A-Z]+=\S+ )*(?:\.venv/bin/)?(engram-bench|pytest|make|benchmarks/gpu_kit\.sh|git|python3|pip|lm_eval) "
)
OTHERS = ("git", "python3", "pip", "lm_eval")  # programs that are not this project's


def commands_by_block(text):
    """Argument lists of the commands in a page's blocks, without what comes before the program, and the block."""
    for number, block in enumerate(BLOCK.findall(text)):
        for line in block.splitlines():
            if PROGRAMS.match(line):
                words = shlex.split(line, comments=True)
                start = next(n for n, word in enumerate(words) if "=" not in word)
                yield number, (words[start].removeprefix(".venv/bin/"), *words[start + 1 :])


FOUND = {(page.name, *command) for page in PAGES for _, command in commands_by_block(page.read_text("utf-8"))}


def test_the_pages_hold_commands_of_every_program():
    ours = {"engram-bench", "pytest", "make", "benchmarks/gpu_kit.sh"}
    assert {command[0] for _, *command in FOUND} == {*ours, *OTHERS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_line_of_a_block_is_such_a_command(page):
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        lines = [] if language else block.splitlines()
        assert [line for line in lines if line and not PROGRAMS.match(line)] == []


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
    elif program not in OTHERS:
        assert program == "benchmarks/gpu_kit.sh"
        assert words[0] in ("pack", "unpack", "run", "collect")


# Commands that the tests of this file do not run, and what does. The first pattern that matches counts.
ELSEWHERE = {
    r"make mac": "a Mac; test_gpu_kit.py runs the script behind it",
    r"make ": "CI: install, lint, test, bench; a demo is run here by its command",
    r"benchmarks/gpu_kit.sh": "test_gpu_kit.py, with a tiny model",
    r"pytest suites -m (mlx|cuda)": "test_gpu_kit.py and test_mlx_backend.py on a CPU; else a Mac or a GPU",
    r"engram-bench lm-eval": "test_lm_eval.py",
    r"engram-bench data --out tasks --format lm-eval": "test_lm_eval.py",
    r"engram-bench (compare|report).* --track": "test_compare_many.py",
    r"engram-bench sweep": "test_sweep.py",
    r"lm_eval": "test_lm_eval.py",
    r"git|python3|pip": "CI, which clones and installs; test_wheel.py installs a wheel",
}
FEW = ("--engram-variants", "baseline,lora,engram-keyed")
NAMES = ("facts", "ask", "write", "forget", "train", "demo")  # of commands that take a model


def elsewhere(command):
    return next((who for pattern, who in ELSEWHERE.items() if re.match(pattern, " ".join(command))), None)


@pytest.fixture(scope="module")
def empty_folder(checkpoint, tmp_path_factory):
    """What a reader has whom the pages address: tables of facts, questions, a model, and three runs."""
    folder = tmp_path_factory.mktemp("reader")
    rows = [f"the door code of the {place} gate,code {n}{n}" for n, place in enumerate(["east", "west", "old", "red"])]
    (folder / "desk.csv").write_text("\n".join(["key,value", *rows]) + "\n")
    (folder / "new.csv").write_text("key,value\nthe lift,code 3\n")
    (folder / "questions.txt").write_text("the door code of the east gate\n")
    (folder / "airports.yaml").write_text((ROOT / "README.md").read_text("utf-8").split("```yaml\n")[1].split("```")[0])
    (folder / "my-model").symlink_to(checkpoint)
    made = run("--engram-profile", "smoke", "--engram-variants", "baseline", "--engram-backend", "cpu",
               "--engram-model", checkpoint, "-k", "facts", "--engram-report", folder / "reports" / "runs")  # fmt: skip
    assert made.returncode == 0, made.stdout
    for name in "ABC":
        shutil.copytree(folder / "reports" / "runs" / "latest", folder / name)
    return folder


def taken(words, folder, block):
    """A page's words with what they stand for. Each block has folders of its own, but for the tables' folders."""
    named = {"baseline.json": str(folder / "baseline.json"), "Qwen/Qwen2-0.5B-Instruct": str(folder / "my-model")}
    words = [f"DIR-{block}" if word == "DIR" else named.get(word, word) for word in words]
    if words[0] in NAMES:
        words += ["--backend", "cpu"]
        words += [] if "--model" in words else ["--model", str(folder / "my-model")]
    if words[0] in ("facts",):
        words += ["--variants", FEW[1]]
    if words[0] in ("train", "demo") and "--profile" not in words:
        words += ["--profile", "smoke"]
    return words


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_one_after_the_other(page, empty_folder, tmp_path, monkeypatch, capfd):
    """From top to bottom, with a tiny model and few facts; but for those that `ELSEWHERE` names."""
    cache, folder = tmp_path / "cache", tmp_path / "reader"
    shutil.copytree(empty_folder, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ENGRAM_BENCH_CACHE", str(cache))
    unlearned = 0
    for block, (program, *words) in commands_by_block(page.read_text("utf-8")):
        if elsewhere((program, *words)):
            continue
        words = taken(words, folder, block)
        if words[0] in ("suites", "bench"):
            smoke = () if "--engram-profile" in words else ("--engram-profile", "smoke", *FEW)
            fixed = (
                "--engram-backend",
                "cpu",
                "--engram-model",
                folder / "my-model",
                "--engram-report",
                "reports/runs",
            )
            quick = ("--engram-variants", "baseline") if "--engram-gate" in words else ()
            if words[0] == "bench":
                code = subprocess.run(suites([*map(str, (*words[1:], *smoke, *fixed))]), check=False).returncode
            else:
                *before, report = fixed
                made = run(*words[1:], *smoke, *quick, *before, folder / report)
                code = made.returncode
                print(made.stdout)
        else:
            if words[0] == "facts":
                shutil.rmtree("desk-facts", ignore_errors=True)
            code = cli.main(words)
        said = capfd.readouterr()
        if words[0] == "write":  # a tiny random model may not learn a fact in the steps that writing takes
            assert code in (0, 1), said
            unlearned += code and words[1] != "reader"  # which a smoke run has hardly trained
        else:
            assert code == 0, (words, said)
    assert unlearned < 2


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_what_runs_a_command_elsewhere_exists(pattern):
    assert any(re.match(pattern, " ".join(command)) for _, *command in FOUND)
    for file in re.findall(r"\w+\.py", ELSEWHERE[pattern]):
        assert (ROOT / "tests" / file).is_file()


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
