"""TRL's SFTTrainer with a peft LoRA, on tokenized rows, with loss on the answers only."""

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
    """Times only `SFTTrainer.train`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    config, training = job["config"], job["training"]
    lora = peft.LoraConfig(
        r=config["rank"], lora_alpha=config["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with tempfile.TemporaryDirectory() as out:
        # TRL's default recomputes activations in the backward pass: slower, and unnecessary if memory suffices.
        args = SFTConfig(out, gradient_checkpointing=False, **arguments(training, dtype))
        trainer = SFTTrainer(
            model, args, train_dataset=Dataset.from_list(rows(job)), processing_class=tokenizer, peft_config=lora
        )
        started = time.perf_counter()
        trainer.train()
        return summary(trainer, time.perf_counter() - started, job)


serve(train, ("trl", "peft", "torch", "transformers"))
