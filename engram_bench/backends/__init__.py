"""Find the backend behind a name. Frameworks are imported only on demand, because importing one takes seconds.

The module ``backend`` in each framework's folder has `pick_device(name)`, `pick_dtype(device)`,
`pick_engine(wanted, device)` and `load(folder, device, lora_engine)`, which returns a `base.Backend`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_bench.backends import gpus
from engram_bench.errors import MissingBackendError, UsageError

if TYPE_CHECKING:
    from engram_bench.backends.base import Backend

FRAMEWORKS = {"cpu": "torch", "cuda": "torch", "mps": "torch", "mlx": "mlx"}
NAMES = tuple(FRAMEWORKS)
LORA_ENGINES = ("auto", "peft", "unsloth")


@dataclass(frozen=True)
class Target:
    """Framework, device and dtype of a run, chosen before any model is loaded; `load` takes a model folder."""

    framework: str  # "torch" or "mlx"
    device: str
    dtype: str
    dtype_reason: str
    lora_engine: str
    lora_engine_reason: str
    load: Callable[[Path], Backend]


def find(name: str, lora_engine: str = "auto") -> Target:
    """Resolve a backend name; auto means torch on cuda, mps or cpu, whichever is available first.

    Args:
        name: auto, or one of `NAMES`.
        lora_engine: one of `LORA_ENGINES`.

    Raises:
        MissingBackendError: MLX is not installed; not every machine can install it.
        UsageError: torch is not installed, or this machine lacks the device or the LoRA engine.
    """
    framework = FRAMEWORKS.get(name, "torch")
    if name in ("auto", "cuda"):
        gpus.settle(os.environ)
    try:
        module: Any = import_module(f"{__name__}.{framework}.backend")
    except ImportError as error:
        kind = MissingBackendError if framework == "mlx" else UsageError  # torch is required, MLX is optional
        mend = f'run: pip install -e ".[{framework}]"'
        raise kind(f"--engram-backend: {framework} is not installed ({error}); {mend}") from error
    device = module.pick_device(name)
    dtype, reason = module.pick_dtype(device)
    engine, why = module.pick_engine(lora_engine, device)
    load = partial(module.load, device=device, lora_engine=(engine, why))
    return Target(framework, device, str(dtype).rpartition(".")[2], reason, engine, why, load)
