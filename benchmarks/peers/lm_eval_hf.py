"""lm-evaluation-harness's `hf` model, called as its generation tasks call it, but without a task."""

import sys
import time

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from serve import Job, Result, serve

folder, dtype = sys.argv[1:]
model = HFLM(pretrained=folder, device="cpu", dtype=dtype)


def generate(job: Job) -> Result:
    """Generate one text per rendered prompt, or `samples` sampled texts, as a task's `repeats` does."""
    options = {"max_gen_toks": job["max_new_tokens"], "do_sample": job["samples"] > 0}
    if job["samples"]:
        options |= {"temperature": job["temperature"], "top_k": 0, "top_p": 1.0}
    asked = [prompt for prompt in job["rendered"] for _ in range(job["samples"] or 1)]
    requests = [Instance("generate_until", {}, (prompt, options), i) for i, prompt in enumerate(asked)]
    model.batch_size_per_gpu = job["batch_size"]
    started = time.perf_counter()
    texts = model.generate_until(requests, disable_tqdm=True)
    return {"seconds": time.perf_counter() - started, "done": len(texts), "texts": texts}


serve(generate, ("lm_eval", "torch", "transformers"))
