"""One prompt at a time through transformers' `generate`, as in a simple script."""

import sys
import time

import torch
from serve import Job, Result, serve
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, dtype = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def answer(prompt: str, max_new_tokens: int) -> str:
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def generate(job: Job) -> Result:
    started = time.perf_counter()
    texts = [answer(prompt, job["max_new_tokens"]) for prompt in job["rendered"]]
    return {"seconds": time.perf_counter() - started, "done": len(texts), "texts": texts}


serve(generate, ("torch", "transformers"))
