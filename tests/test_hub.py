"""Models by hub id, loaded offline from a cache folder in huggingface_hub's layout."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import PATTERNS
from tests.running import ROOT

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture(scope="module")
def hub(checkpoint, tmp_path_factory):
    """The environment of a process that finds the tiny model, at two revisions, in its cache."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--owner--tiny"
    for name, commit in COMMITS.items():
        for folder in ("blobs", "refs", f"snapshots/{commit}"):
            (repository / folder).mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(commit)
        for file in checkpoint.iterdir():
            blob = repository / "blobs" / f"{commit}-{file.name}"
            blob.write_bytes(file.read_bytes())
            (repository / "snapshots" / commit / file.name).symlink_to(blob)
    return {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def resolved(hub, name):
    command = [sys.executable, "-m", "engram_bench.cli", "model", name]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=hub)


@pytest.mark.parametrize(
    ("name", "commit"),
    [
        ("owner/tiny", COMMITS["main"]),
        ("owner/tiny@v1", COMMITS["v1"]),
        (f"owner/tiny@{COMMITS['v1']}", COMMITS["v1"]),
    ],
)
def test_an_id_is_main_unless_a_revision_is_given(hub, name, commit):
    result = resolved(hub, name)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(f"models--owner--tiny/snapshots/{commit}")


@pytest.mark.parametrize("name", ["owner/tiny@v2", "owner/other"])
def test_what_the_cache_has_not_is_one_line_that_names_it(hub, name):
    result = resolved(hub, name)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{name}: cannot be fetched" in line


def test_a_model_that_asks_for_code_of_its_own_is_refused(hub, checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "config.json"
    own = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    config = {**json.loads(file.read_text()), "model_type": "of-its-own", "auto_map": own}
    file.write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    code = f"from pathlib import Path; from engram_bench.backends.torch.backend import TorchModel; TorchModel(Path({str(tmp_path)!r}), 'cpu')"  # noqa: E501
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, input="y\n", capture_output=True, text=True, cwd=ROOT, env=hub)
    assert "transformers cannot load this model" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_the_report_names_the_commit(hub, tmp_path):
    (tmp_path / "colours.yaml").write_text(PATTERNS)
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(ROOT / "suites"), "-k", "accuracy and seen",
        "--engram-model", "owner/tiny@v1", "--engram-variants", "baseline", "--engram-backend", "cpu",
        "--engram-patterns", str(tmp_path / "colours.yaml"), "--engram-report", str(tmp_path / "runs"),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=hub)
    assert result.returncode == 0, result.stdout
    model = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())["model"]
    assert (model["id"], model["revision"]) == ("owner/tiny", COMMITS["v1"])
