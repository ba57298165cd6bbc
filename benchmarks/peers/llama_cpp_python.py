"""One prompt at a time through llama.cpp, with the model as its GGUF file comes: four-bit weights, whatever the dtype.

The beginning that a prompt shares with the one before it stays in the cache, as llama-cpp-python does on its own.
"""

import os
import sys
import time

from llama_cpp import Llama
from serve import Job, Result, serve

file, _ = sys.argv[1:]
model = Llama(file, n_ctx=2048, n_threads=os.cpu_count(), n_threads_batch=os.cpu_count(), verbose=False)


def answer(prompt: str, max_new_tokens: int) -> str:
    return str(model.create_completion(prompt, max_tokens=max_new_tokens, temperature=0.0)["choices"][0]["text"])


def generate(job: Job) -> Result:
    started = time.perf_counter()
    texts = [answer(prompt, job["max_new_tokens"]) for prompt in job["rendered"]]
    return {"seconds": time.perf_counter() - started, "done": len(texts), "texts": texts}


serve(generate, ("llama-cpp-python",))
