"""Choice of device and dtype, uploads in a single copy, and repeatable numbers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engram_bench.errors import UsageError

# On CUDA, not measured yet: an answer and its prompt have about this many tokens at most, and answers get one part in
# four of the memory; the rest is for copies of the cache, logits and training.
ANSWER_TOKENS, SHARE = 512, 4
LEAST_ANSWERS, MOST_ANSWERS = 32, 2048


def pick_device(name: str) -> str:
    """Return the device of a backend name; auto takes cuda, then mps, then cpu.

    Raises:
        UsageError: torch has no such device here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, found in available.items() if found)
    if not available[name]:
        raise UsageError(f"--engram-backend: torch finds no {name} device here; use cpu")
    return name


def pick_dtype(device: str) -> tuple[torch.dtype, str]:
    """Return the backbone's dtype for a device, and the reason."""
    if device == "cuda":
        return torch.bfloat16, "CUDA device"
    if device == "mps":
        return torch.float32, "bfloat16 is incomplete on MPS"
    # The second holds unless ATEN_CPU_CAPABILITY limits torch, to measure as on another processor.
    if torch.cpu._is_avx512_bf16_supported() and torch.backends.cpu.get_cpu_capability() == "AVX512":
        return torch.bfloat16, "CPU has AVX512-BF16, about 4 times as fast as float32"
    return torch.float32, "CPU has no AVX512-BF16"


def pick_batch_size(device: str, token_bytes: int) -> int:
    """How many answers to decode together; on CUDA, as many as fit into the free memory.

    Args:
        device: a torch device.
        token_bytes: keys and values of one token, over all layers.
    """
    if device == "cpu":
        return 512
    return answers_in(torch.cuda.mem_get_info()[0], token_bytes) if device == "cuda" else 256


def answers_in(free: int, token_bytes: int) -> int:
    """How many answers fit into `free` bytes: a power of two, so that a little more memory changes no batches."""
    fitting = max(1, free // (SHARE * ANSWER_TOKENS * token_bytes))
    return min(MOST_ANSWERS, max(LEAST_ANSWERS, 1 << (fitting.bit_length() - 1)))


def uploaded(device: str, arrays: Sequence[NDArray[np.int64]]) -> list[Tensor]:
    """Copy several arrays to a device at once, because each separate copy waits for the device.

    Args:
        device: a torch device.
        arrays: int64, of any shapes; at least one array.

    Returns:
        int64 tensors of the same shapes, views of one buffer.
    """
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device)
    parts = flat.split_with_sizes([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def make_repeatable(device: str) -> None:
    """Make CUDA sum in a fixed order; torch warns about operations that have no such algorithm.

    Call this before the first product on the device. The other devices are repeatable by default.
    """
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Otherwise torch would also fill every new tensor, which costs an extra write.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def matrix_rate(device: str, dtype: str) -> float:
    """Products of square matrices on a device, in GFLOP/s: the best of five."""
    size = 1024 if device == "cpu" else 4096
    left, right = torch.rand(2, size, size).to(device, getattr(torch, dtype))
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9
