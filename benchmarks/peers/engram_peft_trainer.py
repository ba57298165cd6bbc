"""engram-peft's trainer and collator, for a memory with the shape of ours, with loss on the answers only."""

import sys
import tempfile
import time
import typing
from typing import Any

import torch
import typing_extensions
from serve import Job, Result, serve
from torch.nn.utils.rnn import pad_sequence
from training import IGNORED, arguments, rows, summary
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

if not hasattr(typing, "override"):  # new in Python 3.12; engram-peft imports it in older versions too
    typing.override = typing_extensions.override
from engram_peft import EngramConfig, EngramDataCollator, EngramTrainer, get_engram_model

folder, dtype = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)


class AnswerCollator(EngramDataCollator):
    """Restricts the loss to the answer; engram-peft's own collator includes every token."""

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, Any]:
        labels = [torch.tensor(feature["labels"]) for feature in features]
        batch = super().__call__([{"input_ids": feature["input_ids"]} for feature in features], return_tensors)
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return batch


def memory(config: dict[str, Any]) -> EngramConfig:
    """A memory with our layers, n-grams, heads, rows and widths; like ours, with one branch and no convolution."""
    orders = config["orders"]
    return EngramConfig(
        target_layers=config["layers"],
        ngram_sizes=orders,
        engram_vocab_size_per_ngram=[config["rows"]] * len(orders),
        n_head_per_ngram=config["heads"],
        embedding_dim=config["width"] * config["heads"] * len(orders),
        hc_mult=1,
        conv_kernel_size=1,
        engram_dtype="float32",
    )


def train(job: Job) -> Result:
    """Times only `EngramTrainer.train`."""
    config, training = memory(job["config"]), job["training"]
    backbone = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model = get_engram_model(backbone, config, tokenizer, train_mode="engram_only")
    rates = {"engram_dense_learning_rate": training["lr"], "engram_sparse_learning_rate": training["table_lr"]}
    with tempfile.TemporaryDirectory() as out:
        trainer = EngramTrainer(
            model,
            TrainingArguments(out, remove_unused_columns=False, **arguments(training, dtype)),
            train_dataset=rows(job),
            data_collator=AnswerCollator(tokenizer, model.config, model.compressor),
            optimizer_kwargs=rates,
        )
        started = time.perf_counter()
        trainer.train()
        return summary(trainer, time.perf_counter() - started, job)


serve(train, ("engram-peft", "torch", "transformers"))
