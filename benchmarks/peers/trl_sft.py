"""TRL's SFTTrainer with a LoRA of peft on rows that are tokens already, loss on the answers alone."""

import sys
import tempfile
import time

import peft
import torch
from datasets import Dataset
from serve import Job, Result, serve
from training import arguments, rows, summary
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

folder, dtype = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)


def train(job: Job) -> Result:
    """Only `SFTTrainer.train` is timed."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    config, training = job["config"], job["training"]
    lora = peft.LoraConfig(
        r=config["rank"], lora_alpha=config["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with tempfile.TemporaryDirectory() as out:
        # Its own default recomputes activations in the backward pass: slower, and needless where they fit.
        args = SFTConfig(out, gradient_checkpointing=False, **arguments(training, dtype))
        trainer = SFTTrainer(
            model, args, train_dataset=Dataset.from_list(rows(job)), processing_class=tokenizer, peft_config=lora
        )
        started = time.perf_counter()
        trainer.train()
        return summary(trainer, time.perf_counter() - started, job)


serve(train, ("trl", "peft", "torch", "transformers"))
