"""Decide, without knowing any key, whether a prompt asks for something that a memory stores.

`confidence` has the two rules of engram-poc's router. `Router` is learned: a linear classifier on the hidden state that
the untouched model has at the end of the prompt. The alternative to both is to search for known keys (`KeyIndex.find`),
as a memory with ``span: key`` does anyway. All three are measured on labelled prompts that nothing was trained on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.optimize import minimize

THRESHOLD = 0.5
KEY = re.compile(r"(?<![\w:/])[A-Z][A-Z_]+:(?=[^\s:/])")  # CAPITAL:France, but not HTTP://
FAMILIES = (
    r"(?:capital|currency|country code|currency code|symbol|element|atomic number|meaning|mime type|media type"
    r"|(?:default )?port|author|inventor|creator|unicode name|prefix) (?:of|for|with|behind)\b"
)
QUESTION = re.compile(
    rf"^(?:what|who|which)\b(?:'s| is| are| was)? (?:the )?{FAMILIES}|^what does .+ (?:stand for|mean)\b", re.IGNORECASE
)

FILE = "router.safetensors"  # in the folder of the adapter
PENALTY = 1e-2  # of the squared weights


def confidence(text: str) -> float:
    """How sure the rules are that a text asks for something that a memory stores.

    Args:
        text: the user's own words, without the chat template.

    Returns:
        1.0 for a key with its prefix, such as ``CAPITAL:France``; 0.7 for a plain question about a family of keys, such
        as "What is the capital of France?"; else 0.0. The memory acts from `THRESHOLD` on.
    """
    if KEY.search(text):
        return 1.0
    return 0.7 if QUESTION.search(text.strip()) else 0.0


class Router(NamedTuple):
    """A logistic regression on hidden states.

    Attributes:
        weight: float32 [d].
        bias: float32 [1].
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def fitted(cls, asking: NDArray[np.float32], others: NDArray[np.float32]) -> Router:
        """Fit on hidden states, [prompts, d], of prompts that ask for a stored thing, and of others.

        Both kinds count the same, whatever their numbers. The penalty is on the weights of standardized states.
        """
        states = np.concatenate([asking, others]).astype(np.float64)
        sign = np.concatenate([np.ones(len(asking)), -np.ones(len(others))])
        share = np.concatenate([np.full(len(some), 0.5 / len(some)) for some in (asking, others)])
        mean, deviation = states.mean(axis=0), states.std(axis=0) + 1e-6
        inputs = np.concatenate([(states - mean) / deviation, np.ones((len(states), 1))], axis=1)

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            margins = sign * (inputs @ weights)
            slope = -share * sign / (1 + np.exp(np.clip(margins, -500, 500)))
            kept = np.append(weights[:-1], 0.0)  # the bias is free
            value = share @ np.logaddexp(0, -margins) + PENALTY / 2 * kept @ kept
            return float(value), inputs.T @ slope + PENALTY * kept

        weights = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x
        weight = weights[:-1] / deviation
        return cls(weight.astype(np.float32), np.array([weights[-1] - mean @ weight], np.float32))

    def confidence(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities that prompts ask for a stored thing: hidden states [prompts, d] -> [prompts]."""
        logits = np.clip(states @ self.weight + self.bias, -80, 80)
        found: NDArray[np.float32] = 1 / (1 + np.exp(-logits))
        return found

    def save(self, folder: Path) -> None:
        """Write the weights beside an adapter's; the file is replaced as a whole."""
        new = folder / f".{FILE}.new"
        new.write_bytes(save({"weight": self.weight, "bias": self.bias}))
        new.replace(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Router | None:
        """The saved weights; None if the folder has none that can be read."""
        try:
            arrays = load_file(folder / FILE)
            return cls(arrays["weight"], arrays["bias"])
        except (OSError, SafetensorError, KeyError):
            return None
