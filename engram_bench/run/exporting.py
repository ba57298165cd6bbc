"""`engram-bench export`: a trained adapter in the format of another tool.

A LoRA has two formats, peft's and mlx-lm's. They hold the same matrices, transposed and under other names. An n-gram
memory has one format in all frameworks, which only this package reads. It is refused with the name of what loads it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from engram_bench.errors import UsageError
from engram_bench.options import check_writable, one_of
from engram_bench.store import adapters

CONFIG = "adapter_config.json"  # of both formats
PEFT, MLX = "adapter_model.safetensors", "adapters.safetensors"
OUTER = "base_model.model."  # peft's wrapper around the model's own names
LAYER = re.compile(r"(.*layers\.)(\d+)\.(.+)\.lora_[ab]$")
NOTES = "gguf-notes"  # peft's files, and how llama.cpp converts them
README = """\
# {name} for llama.cpp

llama.cpp reads a LoRA as a GGUF file. These commands make one from this folder, which is in peft's format, and use it:

    python convert_lora_to_gguf.py --base MODEL_DIR .      # from llama.cpp's repository; MODEL_DIR: engram-bench model
    llama-cli -m MODEL.gguf --lora {name}-F16-LoRA.gguf -p PROMPT

llama.cpp has no n-gram memory. Python reads one: transformers by engram_bench.pretrained.EngramMemory, MLX by
engram-bench ask DIR --backend mlx.
"""

Arrays = dict[str, NDArray[Any]]


def export(folder: Path, form: str, out: Path) -> None:
    """Write the adapter in `folder` to the new folder `out`, in one of `FORMATS` or as `NOTES`.

    Raises:
        UsageError: the format is unknown, or does not exist for this kind of adapter; `out` is not empty or cannot be
            written; the adapter cannot be read.
    """
    one_of("--format", form, (*FORMATS, NOTES))
    variant = adapters.variant_of(folder)
    own = next((name for name, (file, _) in FORMATS.items() if (folder / file).is_file()), None)
    if own is None or variant.kind not in ("lora", "peft"):
        takes = "transformers by engram_bench.pretrained.EngramMemory, MLX by engram-bench ask DIR --backend mlx"
        raise UsageError(f"{folder}: {variant.name} has no other format; as it is, it is read by {takes}")
    if variant.kind == "peft" and form == "mlx":
        raise UsageError(f"{folder}: mlx-lm has no {variant.name}; it reads a LoRA")
    if variant.kind == "peft" and form == NOTES:
        raise UsageError(f"{folder}: llama.cpp has no {variant.name}; it reads a LoRA")
    check_writable("--out", out)
    if any(out.iterdir()):
        raise UsageError(f"--out: {out}: not empty; choose another folder")
    wanted = "peft" if form == NOTES else form
    (file, _), (new, converted) = FORMATS[own], FORMATS[wanted]
    if own == wanted:
        for name in (CONFIG, file):
            shutil.copyfile(folder / name, out / name)
    else:
        _write(out, new, *converted(*_read(folder, file)))
    if form == NOTES:
        (out / "README.md").write_text(README.format(name=out.resolve().name), encoding="utf-8")


def to_mlx(config: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """mlx-lm's config and matrices of a peft LoRA: A [rank, in] and B [out, rank] become their transposes."""
    named = {
        name.removeprefix(OUTER).removesuffix(".weight").replace("lora_A", "lora_a").replace("lora_B", "lora_b"): array
        for name, array in arrays.items()
    }
    layers, modules = _places(named)
    if len(layers) != max(layers) - min(layers) + 1:
        raise UsageError("mlx-lm adapts neighbouring layers only; this LoRA has others between its own")
    rank = int(config["r"])
    parameters = {"rank": rank, "scale": config["lora_alpha"] / rank, "dropout": 0.0, "keys": modules}
    made = {"fine_tune_type": "lora", "num_layers": len(layers), "lora_parameters": parameters}
    return made, {name: np.ascontiguousarray(array.T) for name, array in named.items()}


def to_peft(config: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """peft's config and matrices of an mlx-lm LoRA: a [in, rank] and b [rank, out] become their transposes."""
    layers, modules = _places(arrays)
    parameters = config["lora_parameters"]
    made = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": parameters["rank"],
        "lora_alpha": parameters["scale"] * parameters["rank"],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "layers_to_transform": layers,
    }
    named = {
        OUTER + name.replace("lora_a", "lora_A").replace("lora_b", "lora_B") + ".weight": np.ascontiguousarray(array.T)
        for name, array in arrays.items()
    }
    return made, named


# Each format's file of matrices, and what makes its config and matrices from the other's.
FORMATS: dict[str, tuple[str, Callable[[dict[str, Any], Arrays], tuple[dict[str, Any], Arrays]]]] = {
    "peft": (PEFT, to_peft),
    "mlx": (MLX, to_mlx),
}


def _places(arrays: Arrays) -> tuple[list[int], list[str]]:
    """The layers that matrices belong to, and the modules within a layer; both sorted."""
    found = [LAYER.match(name) for name in arrays]
    if not all(found):
        odd = next(name for name, match in zip(arrays, found, strict=True) if not match)
        raise UsageError(f"{odd}: not a matrix of a LoRA in a decoder layer")
    parts = [match for match in found if match]
    return sorted({int(match[2]) for match in parts}), sorted({match[3] for match in parts})


def _read(folder: Path, file: str) -> tuple[dict[str, Any], Arrays]:
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")), load_file(folder / file)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UsageError(f"{folder}: this adapter cannot be read ({error})") from error


def _write(out: Path, file: str, config: dict[str, Any], arrays: Arrays) -> None:
    try:
        save_file(arrays, out / file, metadata={"format": "pt" if file == PEFT else "mlx"})
        (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out: {out}: {error.strerror or error}; choose another folder") from error
