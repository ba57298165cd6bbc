"""Train a LoRA with Unsloth, in a separate process.

Importing Unsloth changes transformers' classes for good, so the importing process can no longer measure the unchanged
model. Unsloth's process saves the adapter in peft's format, and it loads like one that peft trained. The training loop
is the shared one; only the forward pass, the loss and the backward pass are Unsloth's.

Written for the interface of Unsloth 2026.10. `_load` has never been run, because it needs a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from engram_bench.backends.base import Progress, Training
from engram_bench.backends.training import Divergences, Hits, run
from engram_bench.errors import UsageError
from engram_bench.prompts import Pair, Prompt
from engram_bench.variants import Variant
from engram_bench.variants.configs import LoraConfig, TrainingConfig

JOB = "job.json"
NO_LABEL = -100  # transformers ignores this label in the loss

Job = Mapping[str, Any]


def pick_engine(wanted: str, device: str) -> tuple[str, str]:
    """Return the library that trains a LoRA on a device, "peft" or "unsloth", and the reason.

    Args:
        wanted: "peft", "unsloth", or "auto", which takes Unsloth if it can run here.
        device: a torch device.

    Raises:
        UsageError: Unsloth is requested but cannot run here.
    """
    missing = "" if wanted == "peft" else _missing(device)
    if wanted == "unsloth" and missing:
        raise UsageError(f"--engram-lora-engine unsloth: {missing}; use auto or peft")
    return ("peft", missing or "as asked") if wanted == "peft" or missing else ("unsloth", "it is installed")


@cache
def _missing(device: str) -> str:
    """Why Unsloth cannot run here; empty if it can. Tests the import in a subprocess, because it has side effects."""
    if device != "cuda":
        return "Unsloth needs a CUDA device"
    if importlib.util.find_spec("unsloth") is None:
        return "Unsloth is not installed"
    result = subprocess.run([sys.executable, "-c", "import unsloth"], capture_output=True, text=True)
    return f"Unsloth cannot be imported ({_last_line(result.stderr)})" if result.returncode else ""


def train(
    model: Path,
    dtype: str,
    variant: Variant,
    pairs: Sequence[Pair],
    seed: int,
    folder: Path,
    progress: Progress,
    replay: Sequence[Pair] = (),
) -> Training:
    """Train a LoRA in a new process, which saves it in peft's format.

    Args:
        model: local model folder.
        dtype: of the backbone; with `four_bit`, of its matrix products.
        variant: of kind lora.
        pairs: prompts and answers, end-of-text included.
        seed: drives the initial parameters and the order of the examples. Results may still differ between runs,
            because Unsloth's kernels do not fix the order of their sums.
        folder: receives the adapter.
        progress: called after every step.
        replay: prompts and the untouched model's answers, see `backends.replay`.

    Raises:
        UsageError: the process failed; the message quotes the last line of its log.
    """
    assert isinstance(variant.config, LoraConfig)
    assert variant.training is not None
    job = {
        "model": str(model.resolve()),
        "folder": str(folder.resolve()),
        "dtype": dtype,
        "lora": asdict(variant.config),
        "training": asdict(variant.training),
        "pairs": [(prompt.ids, answer) for prompt, answer in pairs],
        "replay": [(prompt.ids, answer) for prompt, answer in replay],
        "seed": seed,
    }
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
    environ["UNSLOTH_RETURN_LOGITS"] = "1"  # it computes the loss without them otherwise
    with tempfile.TemporaryDirectory() as scratch:  # Unsloth puts compiled files into the current folder
        log = Path(scratch) / "log.txt"
        (Path(scratch) / JOB).write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", __name__]
        with (
            log.open("w", encoding="utf-8") as errors,
            subprocess.Popen(command, cwd=scratch, env=environ, stdout=subprocess.PIPE, stderr=errors) as process,
        ):
            assert process.stdout is not None
            message: list[Any] = []
            for line in process.stdout:
                message = json.loads(line)
                if len(message) == len(("what", "done", "total")):
                    progress(*message)
        if process.returncode:
            reason = _last_line(log.read_text(encoding="utf-8", errors="replace"))
            raise UsageError(f"Unsloth could not train {variant.name} ({reason}); use --engram-lora-engine peft")
    (record,) = message  # the last message holds only the record
    return Training(**{**record, "losses": tuple(record["losses"])})


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:200] if lines else "no reason given"


# --- in the separate process -----------------------------------------------------------------------------------------


def main() -> None:
    """Run the job in the current folder; print one JSON line per step, and the training record last."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # sends what libraries print to the log
    job = json.loads(Path(JOB).read_text(encoding="utf-8"))

    def send(*message: Any) -> None:
        print(json.dumps(message), file=output, flush=True)

    model = _load(job)
    training = fit(model, job, send)
    save(model, job)
    send(asdict(training))


def _load(job: Job) -> Any:
    """Load the model with Unsloth, and put its LoRA on all linear layers of its decoder layers."""
    from unsloth import FastLanguageModel  # import first, because it patches the other libraries

    from engram_bench.backends.torch.peft_methods import linear_layers

    longest = max(len(prompt) + len(answer) for prompt, answer in (*job["pairs"], *job["replay"]))
    import torch

    model, _ = FastLanguageModel.from_pretrained(
        model_name=job["model"],
        max_seq_length=longest,
        dtype=getattr(torch, job["dtype"]),
        load_in_4bit=job["lora"]["four_bit"],
        trust_remote_code=False,
        use_exact_model_name=True,
        use_gradient_checkpointing=False,
        random_state=job["seed"],
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=job["lora"]["rank"],
        lora_alpha=job["lora"]["alpha"],
        lora_dropout=0.0,
        bias="none",
        target_modules=linear_layers(model),
        layers_to_transform=_layers(model, job),
        use_gradient_checkpointing=False,
        random_state=job["seed"],
    )


def _layers(model: Any, job: Job) -> list[int]:
    """Numbers of the decoder layers that the LoRA adapts."""
    from engram_bench.memory.torch import decoder_layers

    return list(LoraConfig(**job["lora"]).layers(len(decoder_layers(model))))


def fit(model: Any, job: Job, progress: Progress) -> Training:
    """Train the LoRA of a peft model in place, with the step of `torch.training` on whole rows and the model's loss.

    The untouched model of the replay texts is this one with its LoRA off: with `four_bit`, the quantized one.
    """
    import torch

    from engram_bench.backends.torch.replay import distributions, divergences
    from engram_bench.memory.torch import low_precision

    config = TrainingConfig(**job["training"])
    pairs, texts = (
        [(Prompt(tuple(prompt), ()), tuple(answer)) for prompt, answer in job[name]] for name in ("pairs", "replay")
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, betas=(0.9, config.beta2), fused=True)
    device, dtype = parameters[0].device, getattr(torch, job["dtype"])

    def answer_logits(batch: Sequence[Pair]) -> Any:
        ids, labels = (torch.tensor(rows, device=device) for rows in _rows(batch))
        with low_precision(device, dtype):
            logits = model(input_ids=ids).logits
        return logits[:, :-1][labels[:, 1:] != NO_LABEL]

    def step(batch: Sequence[Pair], replay: Sequence[Pair], factor: float) -> tuple[float, Hits, Divergences]:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        ids, labels = (torch.tensor(rows, device=device) for rows in _rows(batch))
        with low_precision(device, dtype):
            output = model(input_ids=ids, labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        kl = np.empty(0, np.float32)
        if replay:
            each = divergences(answer_logits(replay), targets, replay)
            (config.replay_weight * each.mean()).backward()  # type: ignore[no-untyped-call]
            kl = each.detach().cpu().numpy()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        right = output.logits[:, :-1].detach().argmax(-1) == labels[:, 1:]
        return output.loss.item(), right[labels[:, 1:] != NO_LABEL].cpu().numpy(), kl

    with model.disable_adapter():
        targets = distributions(answer_logits, texts)
    model.train()
    return run(step, config, pairs, job["seed"], progress, list(targets))


def _rows(batch: Sequence[Pair]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and labels, right-padded: in a causal model no real token sees the padding."""
    ids = [[*prompt.ids, *answer] for prompt, answer in batch]
    labels = [[NO_LABEL] * len(prompt.ids) + list(answer) for prompt, answer in batch]
    longest = max(map(len, ids))
    return (
        [row + [0] * (longest - len(row)) for row in ids],
        [row + [NO_LABEL] * (longest - len(row)) for row in labels],
    )


def save(model: Any, job: Job) -> None:
    """Save the LoRA as peft does, without the fields that Unsloth adds to the config."""
    import peft
    from safetensors.torch import save_file

    from engram_bench.backends.torch.peft_methods import sort_config

    folder = Path(job["folder"])
    state = peft.get_peft_model_state_dict(model)
    arrays = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    save_file(arrays, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = peft.LoraConfig(
        r=job["lora"]["rank"],
        lora_alpha=job["lora"]["alpha"],
        target_modules=_trained_layers(state),
        layers_to_transform=_layers(model, job),
        task_type="CAUSAL_LM",
        base_model_name_or_path=job["model"],
        inference_mode=True,
    )
    config.save_pretrained(folder)
    sort_config(folder)


def _trained_layers(state: Mapping[str, Any]) -> list[str]:
    """Names of the layers in a LoRA's state, as in ``base_model.model.…layers.0.self_attn.q_proj.lora_A.weight``."""
    return sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in state})


if __name__ == "__main__":
    main()
