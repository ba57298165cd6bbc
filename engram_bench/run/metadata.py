"""Makes the records that describe a run: model, backend, data, variants."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from engram_bench.backends.base import Backend
from engram_bench.data.items import PatternSet
from engram_bench.data.training import TrainingSet
from engram_bench.prompts import PromptEncoder
from engram_bench.records import Record
from engram_bench.run.checks import alike
from engram_bench.store import adapters
from engram_bench.store.adapters import Trained
from engram_bench.store.models import Model
from engram_bench.variants import Variant
from engram_bench.variants.kinds import KINDS


def meta(
    backend: Backend, model: Model, patterns: PatternSet, data: TrainingSet, max_new_tokens: int, load_seconds: float
) -> Record:
    """The first record of a run: backend, model and dataset."""
    return {
        "type": "meta",
        "matmul_gflops": round(backend.matrix_rate(), 1),
        "backend": {
            "name": backend.name,
            "device": backend.device,
            "dtype": backend.dtype,
            "dtype_reason": backend.dtype_reason,
            "batch_size": backend.batch_size,
            "lora_engine": backend.lora_engine,
            "lora_engine_reason": backend.lora_engine_reason,
            "max_new_tokens": max_new_tokens,
            "load_seconds": load_seconds,
            "versions": backend.versions(),
        },
        "model": {
            "id": model.id,
            "source": model.source,
            "revision": model.revision,
            "sha256": model.sha256,
            "parameters": backend.parameters,
            "prompt": backend.encoder.describe(),
            "prompt_sha256": prompt_sha256(backend.encoder),
        },
        "dataset": {
            "sha256": patterns.sha256,
            "items": sum(len(c.items) for c in patterns.categories.values()),
            "training": data.kind,
            "training_examples": len(data.examples),
            "replay_texts": len(data.replay),
            "keys_alike": len(alike(patterns)),
            "categories": {
                name: {"items": len(c.items), "group": c.group, "source": c.source}
                for name, c in patterns.categories.items()
            },
        },
    }


def untrained(variant: Variant, facts_bytes: int | None = None) -> Record:
    """The record of a variant that trains nothing; `facts_bytes`: size of the text of all facts, if it keeps them."""
    return {
        "name": variant.name,
        "about": variant.about,
        "package": KINDS[variant.kind].package,
        "config": asdict(variant),
        "trainable_parameters": 0,
        "adapter_sha256": None,
        "adapter_bytes": None,
        "facts_bytes": facts_bytes,
        "train": None,
        "cached": False,
    }


def trained(variant: Variant, found: Trained, seed: int, by: Backend, parameters: int) -> Record:
    """The record of a variant whose adapter, of `parameters` numbers, was trained by the backend `by`."""
    engine = by.lora_engine if variant.kind == "lora" else None
    return {
        **untrained(variant),
        "trainable_parameters": parameters,
        "adapter_sha256": found.sha256,
        "adapter_bytes": adapters.size(found.folder),
        "train": {**asdict(found.training), "seed": seed, "backend": by.name, "engine": engine},
        "cached": found.cached,
    }


def prompt_sha256(encoder: PromptEncoder) -> str:
    """Fingerprint of the chat template and tokenizer: token ids of one sample prompt and answer."""
    ids = [encoder.prompt("What is stored under KEY?").ids, encoder.answer("a value")]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def texts_sha256(texts: Sequence[str]) -> str:
    """Fingerprint of texts in their order."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
