"""A pytest plugin for tests of whole runs: it logs model calls and can kill the process at a given point.

MEDDLE_LOG: a file that gets one line for every training and every call of `generate`.
MEDDLE_KILL: "WORKER WHAT N" names an xdist worker ("main" without xdist). Its process gets SIGKILL at step N of its
first training, or before its N-th `generate`. With "error", that call raises instead, like a device out of memory.
"""

import os
import signal
from pathlib import Path

from engram_bench.backends.torch.backend import TorchModel

WORKER, WHAT, WHEN = (os.environ.get("MEDDLE_KILL") or "nobody nothing 0").split()
train, generate = TorchModel.train, TorchModel.generate
asked = 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def note(line):
    with Path(os.environ["MEDDLE_LOG"]).open("a") as file:
        file.write(line + "\n")


def meant(what):
    return os.environ.get("PYTEST_XDIST_WORKER", "main") == WORKER and what == WHAT


def meddled_train(self, variant, examples, seed, folder, progress, *more):
    note(f"train {variant.name} {seed}")
    steps = iter(range(1, 1_000_000))

    def watched(what, done, total):
        if meant("train") and next(steps) == int(WHEN):
            die()
        progress(what, done, total)

    return train(self, variant, examples, seed, folder, watched, *more)


def meddled_generate(self, prompts, *args, **kwargs):
    global asked
    asked += 1
    if meant("generate") and asked == int(WHEN):
        die()
    if meant("error") and asked == int(WHEN):
        raise RuntimeError("out of memory")
    note(f"generate {len(prompts)}")
    return generate(self, prompts, *args, **kwargs)


TorchModel.train, TorchModel.generate = meddled_train, meddled_generate
