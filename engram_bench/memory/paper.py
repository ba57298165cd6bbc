"""The published module, whole and by itself: what `memory.torch.EngramLayer` equals if its config is the paper's."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from engram_bench.memory.hashing import NgramHasher

CONV_EPS = 1e-5  # of the norm before the convolution


class PaperEngram(nn.Module):
    """The memory of one layer as published (arXiv:2601.07372, section 2), in one branch, with whole tables.

    ``v = gate * (W_V e + b_V)``, where e joins the table rows of the n-grams that end at a token. The output is
    ``v + SiLU(conv(RMSNorm(v)))``. The convolution starts at zero. Names of parameters are those of the publication.

    Args:
        hasher: the hash functions; with them come the orders, the heads and the tables' sizes.
        layer_id: one of the hasher's layers.
        hidden_size: d of the backbone.
        width_per_head: numbers per table row.
        kernel_size: taps of the convolution.
        dilation: tokens from one tap to the next.
    """

    def __init__(
        self,
        hasher: NgramHasher,
        layer_id: int,
        hidden_size: int,
        width_per_head: int,
        kernel_size: int,
        dilation: int = 3,
    ) -> None:
        super().__init__()
        sizes = np.array(hasher.primes[layer_id]).ravel()
        self.hasher, self.layer_id, self.reach = hasher, layer_id, (kernel_size - 1) * dilation
        self._offsets = np.cumsum([0, *sizes[:-1]])
        self.table = nn.Embedding(int(sizes.sum()), width_per_head)
        self.key_proj = nn.Linear(len(sizes) * width_per_head, hidden_size)
        self.value_proj = nn.Linear(len(sizes) * width_per_head, hidden_size)
        self.norm_key, self.norm_query = nn.RMSNorm(hidden_size), nn.RMSNorm(hidden_size)
        self.conv_norm = nn.RMSNorm(hidden_size, eps=CONV_EPS)
        self.conv = nn.Conv1d(hidden_size, hidden_size, kernel_size, dilation=dilation, groups=hidden_size, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        """What the memory adds to the hidden states.

        Args:
            hidden: [batch, tokens, d], the layer's input.
            input_ids: [batch, tokens].

        Returns:
            [batch, tokens, d].

        Raises:
            ValueError: a token id is negative.
        """
        e = self._looked_up(input_ids)
        value = self._gate(e, hidden) * self.value_proj(e)
        before = pad(self.conv_norm(value).transpose(1, 2), (self.reach, 0))
        added: Tensor = value + silu(self.conv(before)).transpose(1, 2)
        return added

    def gate(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        """How far the gate is open at each token, 0 to 1: [batch, tokens]; see `forward`."""
        return self._gate(self._looked_up(input_ids), hidden)[..., 0]

    def _looked_up(self, input_ids: Tensor) -> Tensor:
        """The rows of all n-grams that end at each token: [batch, tokens, orders * heads * width]."""
        rows = self.hasher.indices(input_ids.cpu().numpy(), self.layer_id) + self._offsets
        found: Tensor = self.table(torch.from_numpy(rows).to(self.table.weight.device))
        return found.flatten(-2)

    def _gate(self, e: Tensor, hidden: Tensor) -> Tensor:
        score = (self.norm_key(self.key_proj(e)) * self.norm_query(hidden)).sum(-1, keepdim=True)
        score = score / math.sqrt(hidden.shape[-1])
        return torch.sigmoid(score.sign() * score.abs().clamp_min(1e-6).sqrt())
