"""The adapter cache: each adapter is trained once per model, data, config, seed, device and code version."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from engram_bench import variants
from engram_bench.backends import routed
from engram_bench.backends.base import Backend, Progress, Training, adapter_class
from engram_bench.data import prompt_sets
from engram_bench.data.items import Example
from engram_bench.data.training import TrainingSet
from engram_bench.errors import UsageError
from engram_bench.store.cache import build_once, cache_dir
from engram_bench.store.models import Model
from engram_bench.variants import Variant
from engram_bench.variants.kinds import KINDS

TRAINING, VARIANT = "training.json", "variant.yaml"
# The code that training depends on; editing it invalidates cached adapters.
CODE = ("prompts.py", "data/plain_text.py", "backends", "memory")


@dataclass(frozen=True)
class Trained:
    """An adapter's folder, its training record, the SHA-256 of its files, and whether it came from the cache."""

    folder: Path
    training: Training
    sha256: str
    cached: bool


def ensure(
    backend: Backend,
    model: Model,
    variant: Variant,
    data: TrainingSet,
    seed: int,
    *,
    retrain: bool,
    progress: Progress,
    run_id: str | None = None,
) -> Trained:
    """Return a variant's adapter from the cache, or train it now. Variants may share an adapter.

    A variant with a learned router has a copy of the adapter, with the router beside it.

    `retrain` trains it again even if it is cached, but only once per run: all processes of run `run_id` share it.

    Raises:
        UsageError: the cached adapter is damaged, or the cache cannot be written.
    """
    folder = folder_of(backend, model, variant, data, seed)

    def build(new: Path) -> None:
        try:
            if _has_own_router(variant):
                base = replace(variant, name=variant.adapter_of or variant.name, adapter_of=None, router=None)
                found = ensure(backend, model, base, data, seed, retrain=retrain, progress=progress, run_id=run_id)
                for file in _files(found.folder):
                    shutil.copyfile(file, new / file.name)
                routed.fit(backend, variant, new)
                training = found.training
            else:
                training = backend.train(variant, data.examples, seed, new, progress, data.validation, data.replay)
        except SafetensorError as error:  # the safetensors writer raises this on a full disk
            mend = "free disk space, or set ENGRAM_BENCH_CACHE to another folder"
            raise UsageError(f"{folder}: the adapter cannot be written ({error}); {mend}") from error
        _name_base_model(new, model.id)
        record = {"training": asdict(training), "sha256": _files_sha256(new), "run": run_id}
        (new / TRAINING).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    built = build_once(folder, build, overwrite=lambda: retrain and not _trained_by_run(folder, run_id))
    mend = "delete the folder or use --engram-retrain"
    try:
        record = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
        training = Training(**{**record["training"], "losses": tuple(record["training"]["losses"])})
        sha256 = record["sha256"]
        intact = _files_sha256(folder) == sha256
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}: the cached adapter is incomplete ({error}); {mend}") from error
    if not intact:
        raise UsageError(f"{folder}: the adapter is damaged; {mend}")
    return Trained(folder, training, sha256, cached=not (built or _trained_by_run(folder, run_id)))


def _name_base_model(folder: Path, name: str) -> None:
    """Have an adapter by peft name the model, not the folder that it was loaded from."""
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card, which names that folder too
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "base_model_name_or_path" in config:  # mlx-lm's config has none
        config["base_model_name_or_path"] = name
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "adapter_model.safetensors").chmod(file.stat().st_mode)  # its writer ignores the umask


def copy(folder: Path, out: Path, variant: Variant) -> None:
    """Copy a cached adapter to an existing folder of the user: its variant in place of the cache's training record.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        for file in _files(folder):
            shutil.copyfile(file, out / file.name)  # with the mode that the umask gives, not the cache's
        (out / VARIANT).write_text(variants.dump(variant), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror or error}; choose another folder") from error


def variant_of(folder: Path) -> Variant:
    """The variant of a folder made by `copy`.

    Raises:
        UsageError: the folder does not say which variant it holds.
    """
    try:
        text = (folder / VARIANT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        mend = "make one with engram-bench train VARIANT --out DIR"
        raise UsageError(f"{folder}: no trained adapter here ({error}); {mend}") from error
    return variants.parse(text, str(folder / VARIANT))


def _trained_by_run(folder: Path, run_id: str | None) -> bool:
    try:
        return run_id is not None and bool(json.loads((folder / TRAINING).read_text("utf-8"))["run"] == run_id)
    except (OSError, ValueError, KeyError, TypeError):  # incomplete: `ensure` reports it or trains it again
        return False


def folder_of(
    backend: Backend,
    model: Model,
    variant: Variant,
    data: TrainingSet,
    seed: int,
) -> Path:
    """The adapter's folder in the cache; its name hashes everything that affects the adapter or its training record."""
    key = {
        "model": model.sha256,
        "data": [data.kind, *map(_trained, (data.examples, data.validation)), data.replay],
        "variant": [variant.kind, *(asdict(part) for part in (variant.config, variant.training) if part)],
        "seed": seed,
        "engine": backend.lora_engine if variant.kind == "lora" else None,
        "backend": [backend.name, backend.device.split(":")[0], backend.dtype],
        "code": code_sha256(),
        "versions": backend.versions(),
    }
    if _has_own_router(variant):
        key["router"] = prompt_sets.routing_development()
    if (kind := KINDS[variant.kind]).package:  # its code is not part of this package's
        file = inspect.getfile(adapter_class(variant, backend.name))  # type: ignore[arg-type]
        key["package"] = [kind.package, hashlib.sha256(Path(file).read_bytes()).hexdigest()]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    name = variant.name if _has_own_router(variant) else variant.adapter_of or variant.name
    return cache_dir() / "adapters" / f"{name}-{digest[:16]}"


def _trained(examples: Sequence[Example]) -> list[list[Any]]:
    """What a training sees of examples: of their items, not how else they are asked, nor where they were read."""
    return [
        [e.prompt, e.answer, e.key, [[i.category, i.relation, i.input, i.output, i.names[:1]] for i in e.items]]
        for e in examples
    ]


def _has_own_router(variant: Variant) -> bool:
    return variant.router == "learned"


def _files_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of an adapter's weight and config files."""
    digest = hashlib.sha256()
    for file in _files(folder):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def size(folder: Path) -> int:
    """Bytes of an adapter's weight and config files."""
    return sum(file.stat().st_size for file in _files(folder))


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.name not in (TRAINING, VARIANT)]


@cache
def code_sha256(names: tuple[str, ...] = CODE) -> str:
    """SHA-256 of some files and folders of this package."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for name in names:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()
