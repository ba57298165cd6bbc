"""Which device and dtype, one copy for all that a forward needs, and the same numbers in every run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_bench.errors import UsageError


def pick_device(name: str) -> str:
    """The device behind a backend name; auto takes cuda, then mps, then cpu.

    Raises:
        UsageError: torch has no such device here.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, found in there.items() if found)
    if not there[name]:
        raise UsageError(f"--engram-backend: torch finds no {name} device here; use cpu")
    return name


def pick_dtype(device: str) -> tuple[torch.dtype, str]:
    """The backbone's dtype on a device, and why."""
    if device == "cuda":
        return torch.bfloat16, "CUDA device"
    if device == "mps":
        return torch.float32, "bfloat16 is incomplete on MPS"
    if torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16, "CPU has AVX512-BF16, about 4 times float32"
    return torch.float32, "CPU has no AVX512-BF16"


def uploaded(device: str, arrays: Sequence[NDArray[np.int64]]) -> list[Tensor]:
    """The arrays on a device, in one copy: each copy of its own would wait for the device once more.

    Args:
        device: a torch device.
        arrays: int64, of any shapes; at least one.

    Returns:
        int64 tensors of the same shapes, parts of one buffer.
    """
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device)
    parts = flat.split_with_sizes([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def make_repeatable(device: str) -> None:
    """Have CUDA add up in a fixed order, where torch has such a way; it warns where it has none.

    Has to come before the first product on the device. The other devices are repeatable as they are.
    """
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Torch would also write to every new tensor, once more for each.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
