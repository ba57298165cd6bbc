"""Compare the speed of this project with other tools on one machine; prints a table and writes a results file.

Run it with `make compare`. Each side is a process with a loaded model. All sides do the same work in the same dtype,
in turns. Only a side's own work is timed. Our times include tokenization; those of the training peers do not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import measures
from measures import Record, Work
from sides import Side, started
from transformers import AutoTokenizer

from engram_bench import backends
from engram_bench.data import patterns
from engram_bench.options import PROFILES, chosen_items
from engram_bench.prompts import PromptEncoder
from engram_bench.run import evaluate
from engram_bench.shipped import CHECKOUT, PATTERNS
from engram_bench.store import models

RESULTS = Path(__file__).parent / "results"
GROUPS = ("core", "lookups")
NOTES = {
    "same_text": "   {same} of {of} texts equal",
    "same_text_in_float32": ", in float32 {same} of {of}",
    "loss_of_last_epoch": "   loss {ours:.3f} and {theirs:.3f}",
    "to_their_loss": ", reaches their loss {ratio:.1f} times as fast, in {epochs} epochs",
}
LLAMA_CPP = "llama_cpp_python"  # reads a GGUF file, which only the bundled model comes as
SIDES = ("ours", "lm_eval_hf", "one_at_a_time", "trl_sft", "engram_peft_trainer")


def main() -> None:
    options = arguments()
    model, target = models.resolve(options.model), backends.find("cpu")
    encoder = PromptEncoder(AutoTokenizer.from_pretrained(model.folder, local_files_only=True))
    work = work_of(options, encoder)
    with ExitStack() as stack:
        sides = {name: stack.enter_context(started(name, model.folder, target.dtype)) for name in SIDES}
        raw, added = measure(work, *sides.values())
        if options.model == "bundled":
            gguf = models.fetch_gguf(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            sides[LLAMA_CPP] = stack.enter_context(started(LLAMA_CPP, gguf, target.dtype))
            raw |= measures.four_bit_weights(work, sides["ours"], sides[LLAMA_CPP])
        versions = {name: side.versions for name, side in sides.items()}
    with started("ours", model.folder, "float32") as ours, started("lm_eval_hf", model.folder, "float32") as lm_eval:
        raw["evaluation_vs_lm_eval"]["same_text_in_float32"] = measures.same_in_float32(work, ours, lm_eval)
    now = datetime.now(UTC)
    record = {
        "ratios": {name: found["ratio"] for name, found in raw.items() if "ratio" in found},
        "overhead": {name: found["overhead"] for name, found in added.items()},
        "date": now.isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}; {target.dtype_reason}",
        "dtype": target.dtype,
        "model": model.id,
        "sizes": {name: value for name, value in vars(options).items() if name != "model"},
        "versions": versions,
        "raw": raw,
        "raw_overhead": added,
    }
    print(table(raw, added))
    file = RESULTS / f"{now:%Y-%m-%d}.json"
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"\n{file.relative_to(CHECKOUT)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--profile", choices=PROFILES, default="default", help="profile that selects the items to ask and to train"
    )
    parser.add_argument("--items", type=int, default=1000, help="maximum number of items to ask")
    parser.add_argument("--examples", type=int, default=128, help="maximum number of training examples")
    parser.add_argument("--repeats", type=int, default=3, help="number of rounds; results are medians")
    parser.add_argument("--model", default="bundled", help="bundled, a hub id or a folder")
    return parser.parse_args()


def work_of(options: argparse.Namespace, encoder: PromptEncoder) -> Work:
    """Questions in trained phrasings from the profile's core and lookup categories, and all its training examples."""
    chosen = chosen_items(patterns.load(PATTERNS), options.profile)
    names = [name for name, category in chosen.categories.items() if category.group in GROUPS]
    asked = evaluate.questions(chosen, [(name, split) for name in names for split in ("seen", "heldout")])
    prompts = measures.spread([question.prompt for question in asked], options.items)
    return Work(encoder, prompts, chosen.training_examples(), options.examples, options.repeats)


def measure(work: Work, ours: Side, lm_eval: Side, loop: Side, trl: Side, engram_peft: Side) -> tuple[Record, Record]:
    """Return the comparisons with peers by name, including the hardware limit, and the overhead measurements."""
    raw = measures.evaluation(work, ours, lm_eval, loop)
    raw["training_vs_trl"] = measures.training(work, ours, trl, "lora")
    raw["training_vs_engram_peft"] = measures.training(work, ours, engram_peft, "engram-keyed")
    return raw, measures.overhead(work, ours)


def table(raw: Record, added: Record) -> str:
    lines = [f"{'answers, examples a second':<28}{'ours':>10}{'theirs':>10}{'ratio':>8}"]
    for name, found in raw.items():
        if "ratio" in found:
            rates = found["per_second"]
            lines.append(
                f"{name:<28}{rates['ours']:>10.2f}{rates['theirs']:>10.2f}{found['ratio']:>8.1f}{_notes(found)}"
            )
    lines += ["", f"{'attached memory, ms':<28}{'without':>10}{'with':>10}{'adds':>8}"]
    for name, found in added.items():
        without, with_it = found["baseline_seconds"] * 1e3, found["engram_seconds"] * 1e3
        lines.append(f"{name:<28}{without:>10.1f}{with_it:>10.1f}{found['overhead']:>8.1%}")
    limit = raw["limit"]
    shares = ", ".join(f"{name} at {limit[name]['share']:.0%}" for name in ("prefill", "decode"))
    return "\n".join([*lines, "", f"large matrix products run at {limit['matrix_gflops']:.0f} GFLOP/s: {shares} of it"])


def _notes(found: dict[str, Any]) -> str:
    """Extra columns of a table row: number of equal texts, losses reached."""
    return "".join(form.format(**found[name]) for name, form in NOTES.items() if name in found)


if __name__ == "__main__":
    main()
