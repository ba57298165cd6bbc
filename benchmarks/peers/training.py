"""Shared by the two peers that train with a transformers Trainer: rows, settings and results."""

from __future__ import annotations

from typing import Any

IGNORED = -100  # the label of a token outside the loss


def rows(job: dict[str, Any]) -> list[dict[str, list[int]]]:
    """Training rows; the loss covers the answer's tokens, not the prompt's."""
    return [
        {"input_ids": [*prompt, *answer], "labels": [*[IGNORED] * len(prompt), *answer]}
        for prompt, answer in job["tokens"]
    ]


def arguments(training: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Our training settings, as arguments of transformers."""
    return {
        "num_train_epochs": training["epochs"],
        "per_device_train_batch_size": training["batch_size"],
        "learning_rate": training["lr"],
        "adam_beta2": training["beta2"],
        "max_grad_norm": training["clip"],
        "weight_decay": 0.0,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,  # our 5% of so few steps is less than one
        "bf16": dtype == "bfloat16",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def summary(trainer: Any, seconds: float, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds, examples seen, and the mean loss of the steps of the last epoch."""
    epochs = job["training"]["epochs"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last = losses[-len(losses) // epochs :]
    return {"seconds": seconds, "done": len(job["tokens"]) * epochs, "loss": sum(last) / len(last)}
