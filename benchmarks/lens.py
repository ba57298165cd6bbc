"""Where a memory's gate opens, and in which layer the answer can be read: gates by token, and the logit lens.

``engram-bench train engram --profile quick --out DIR; python benchmarks/lens.py DIR`` asks ten trained questions, one
of each of ten categories. It writes results/lens.json and draws it as docs/lens.png. The logit lens applies the model's
last norm and its vocabulary matrix to the hidden state after each layer (nostalgebraist, 2020).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from recipes import commit, saved
from torch import Tensor
from torch.nn.functional import linear

from engram_bench import backends
from engram_bench.backends.base import Adapter
from engram_bench.backends.torch.adapters import EngramAdapter
from engram_bench.data import patterns
from engram_bench.data.questions import questions
from engram_bench.memory import weights
from engram_bench.memory.torch import decoder_layers
from engram_bench.options import chosen_items
from engram_bench.prompts import Prompt
from engram_bench.shipped import PATTERNS
from engram_bench.store import models

PROMPTS = 10
DOCS = Path(__file__).parents[1] / "docs"


@contextmanager
def outputs(network: Any) -> Iterator[list[Tensor]]:
    """Inside the context, append each layer's output at the last token, [d], to a list."""
    found: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        found.append(hidden[0, -1])

    handles = [layer.register_forward_hook(keep) for layer in decoder_layers(network)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def lens(backend: Any, adapter: Adapter | None, prompt: Prompt, token: int) -> list[float]:
    """Log-probability, in nats, of a token as the next one, read after each layer."""
    network = backend.model
    with backend.attached(adapter), outputs(network) as hidden:
        backend.forward([], backend.rows([(prompt, ())], 0), keep=1)
        head, norm = network.get_output_embeddings().weight, network.base_model.norm
        logits = linear(norm(torch.stack(hidden)), head).float()
    return [round(value, 3) for value in logits.log_softmax(-1)[:, token].tolist()]


@torch.inference_mode()
def gates(backend: Any, adapter: EngramAdapter, prompt: Prompt) -> dict[int, list[float]]:
    """Gate values by layer, one per token; 0 where the layer finds nothing."""
    with backend.attached(adapter):
        backend.forward([], backend.rows([(prompt, ())], 0), keep=1)
        found = {number: layer.gate for number, layer in adapter.layers.items()}
    nothing = [0.0] * len(prompt.ids)
    return {
        number: nothing if gate is None else [round(value, 3) for value in gate[0, :, 0].tolist()]
        for number, gate in found.items()
    }


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean gates by layer, on the user's tokens and on the template's; mean log-probabilities after each layer."""
    gate: dict[str, dict[str, float]] = {}
    for number in trials[0]["gates"]:
        found: dict[str, list[float]] = {"user": [], "template": []}
        for trial in trials:
            for value, own in zip(trial["gates"][number], trial["user"], strict=True):
                found["user" if own else "template"].append(value)
        gate[str(number)] = {of: round(sum(values) / len(values), 2) for of, values in found.items()}
    every = {name: [trial[name] for trial in trials] for name in ("untouched", "with memory")}
    lenses = {
        name: [round(sum(layer) / len(layer), 1) for layer in zip(*rows, strict=True)] for name, rows in every.items()
    }
    return {"gate": gate, **lenses}


def drawn(trials: list[dict[str, Any]], file: Path) -> None:
    """Gates by token, a row per prompt and layer, beside the log-probability of the answer's first token by layer."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [(trial, number) for trial in trials for number in trial["gates"]]
    longest = max(len(trial["tokens"]) for trial in trials)
    table = [[*([float("nan")] * (longest - len(t["tokens"]))), *t["gates"][number]] for t, number in rows]
    shown = left.imshow(table, aspect="auto", vmin=0, vmax=1, cmap="viridis")
    left.set_yticks(range(len(rows)), [f"{t['category']}, layer {number}" for t, number in rows], fontsize=7)
    left.set_xticks([])
    left.set_xlabel("tokens of the prompt, the last at the right")
    left.set_title("Gate by token")
    figure.colorbar(shown, ax=left)
    for name, colour in (("untouched", "tab:gray"), ("with memory", "tab:blue")):
        every = [trial[name] for trial in trials]
        for line in every:
            right.plot(line, color=colour, alpha=0.25, linewidth=0.8)
        mean = [sum(values) / len(values) for values in zip(*every, strict=True)]
        right.plot(mean, color=colour, label=name, linewidth=2)
    for number in trials[0]["gates"]:
        right.axvline(number - 0.5, color="tab:red", linewidth=0.8, linestyle=":")
    right.set_xlabel("after layer (dotted: the memory's)")
    right.set_ylabel("log-probability of the answer's first token, nats")
    right.set_title("Logit lens at the prompt's last token")
    right.legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path, help="a memory's folder, from engram-bench train --out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--model", default="bundled", help="model, as for pytest's --engram-model")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "lens.json")
    parser.add_argument("--plot", type=Path, default=DOCS / "lens.png")
    args = parser.parse_args()
    backend = backends.find(args.device).load(models.resolve(args.model).folder)
    adapter = EngramAdapter.load(backend.model, weights.engram_config(args.adapter), backend.encoder, args.adapter)
    data = chosen_items(patterns.load(PATTERNS), "quick")
    trials = []
    for category in list(data.categories.values())[:PROMPTS]:
        question = questions(category, "seen")[0]
        prompt, token = backend.encoder.prompt(question.prompt), backend.encoder.answer(question.item.output)[0]
        trials.append(
            {
                "category": category.name,
                "prompt": question.prompt,
                "answer": question.item.output,
                "user": list(prompt.content),
                "tokens": [backend.encoder.tokenizer.decode([i]) for i in prompt.ids],
                "gates": gates(backend, adapter, prompt),
                "untouched": lens(backend, None, prompt, token),
                "with memory": lens(backend, adapter, prompt, token),
            }
        )
    saved(args.out, backend, trials, commit=commit(), summary=summary(trials))
    drawn(trials, args.plot)


if __name__ == "__main__":
    main()
