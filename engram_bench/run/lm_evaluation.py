"""lm-evaluation-harness on the untouched model, and on the model with a trained adapter: `engram-bench lm-eval`.

The harness runs its own `HFLM` on a plain transformers model, so the untouched scores are those of its own command. An
n-gram memory is attached by `pretrained.EngramMemory`, which finds by itself where an answer begins; docs/lm-eval.md.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engram_bench import backends
from engram_bench.backends.base import adapter_class
from engram_bench.data import lm_eval_tasks
from engram_bench.errors import UsageError
from engram_bench.options import BACKENDS, integer, one_of
from engram_bench.run import lm_scores
from engram_bench.store import adapters, models
from engram_bench.variants import Variant

INSTALL = 'run: pip install -e ".[lmeval]"'
UNFIT = "lm-eval runs the model's own forward, which gives {}; {}"


def run(args: argparse.Namespace) -> None:
    """Print the table of scores, and write it to a file with --out.

    Raises:
        UsageError: an option, the adapter's folder or a task is wrong; said before a model is loaded, where it can be.
    """
    names = [name.strip() for name in args.tasks.split(",") if name.strip()]
    asked = _asked(args, names)
    variant = _checked(adapters.variant_of(args.adapter)) if args.adapter else None
    if find_spec("lm_eval") is None:
        raise UsageError(f"lm-eval is not installed; {INSTALL}")
    target = backends.find(args.backend)
    if variant:
        adapter_class(variant, target.framework)  # refuses a kind that torch does not have
    with lm_eval_tasks.example() as example:
        own = [example, args.include_path] if args.include_path else [example]
        found, manager = _tasks(names, [str(folder.expanduser()) for folder in own])
        model, encoder = _load(models.resolve(args.model).folder, target, args.apply_chat_template)
        if variant:
            with _attached(variant, args.adapter, model, encoder):
                pass  # what does not fit is said before the untouched model is asked
        untouched = _evaluated(model, encoder.tokenizer, found, manager, asked)
        adapted = None
        if variant:
            with _attached(variant, args.adapter, model, encoder):
                adapted = _evaluated(model, encoder.tokenizer, found, manager, asked)
    name = variant.name if variant else None
    scores = lm_scores.scores_of(untouched, adapted)
    if args.out:
        which = {"model": args.model, "adapter": str(args.adapter) if args.adapter else None, "variant": name}
        how = {"device": target.device, "dtype": target.dtype, "tasks": found, **asked, "lm_eval": version("lm_eval")}
        lm_scores.write(args.out, {**which, **how}, scores, untouched, adapted)
    print(lm_scores.table(scores, name))


def _asked(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Arguments of `lm_eval.simple_evaluate`."""
    if not names:
        raise UsageError(f"--tasks: name at least one task, such as {lm_eval_tasks.EXAMPLE_TASK}")
    one_of("--backend", args.backend, BACKENDS)
    if backends.FRAMEWORKS.get(args.backend) == "mlx":
        raise UsageError("--backend: lm-eval runs on torch only; use cpu, cuda or mps instead of mlx")
    limit = None if args.limit is None else _at_least_one("--limit", args.limit)
    shots = None if args.num_fewshot is None else integer("--num-fewshot", args.num_fewshot)
    size = _at_least_one("--batch-size", args.batch_size)
    if args.include_path and not args.include_path.expanduser().is_dir():
        raise UsageError(f"--include-path: {args.include_path}: no such folder; name one with YAML files of tasks")
    if args.out and (args.out.is_dir() or not os.access(args.out.parent, os.W_OK)):
        raise UsageError(f"--out: {args.out}: cannot be written; name a file in a folder that exists")
    chat = args.apply_chat_template
    return {"limit": limit, "num_fewshot": shots, "batch_size": size, "apply_chat_template": chat}


def _at_least_one(option: str, text: str) -> int:
    if not (number := integer(option, text)):
        raise UsageError(f"{option}: 0 asks nothing; use 1 or more")
    return number


def _checked(variant: Variant) -> Variant:
    """The variant, if its adapter can run under a model's own forward."""
    if variant.router:
        mend = f"name a folder of {variant.adapter_of}, which has no router"
        raise UsageError(f"variant {variant.name}: {UNFIT.format('no whole prompt to its router', mend)}")
    mend = "name a folder of another kind"
    if variant.kind == "unigram":
        raise UsageError(f"variant {variant.name}: {UNFIT.format('no token ids to a single-token memory', mend)}")
    if variant.kind == "engram-hearing":
        raise UsageError(f"variant {variant.name}: {UNFIT.format('no whole prompt to a hearing memory', mend)}")
    return variant


def _tasks(names: Sequence[str], folders: Sequence[str]) -> tuple[list[str], Any]:
    """Names of the tasks and the `TaskManager` that knows them. Their data is loaded once, so that what fails is known.

    Tasks that come with lm-eval are looked at only if a name or pattern may mean one: there are thousands of files.

    Raises:
        UsageError: there is no such task, or it cannot be loaded.
    """
    try:
        from lm_eval.tasks import TaskManager
    except (ImportError, AttributeError) as error:  # of a version for older transformers
        raise UsageError(f"lm-eval cannot be imported ({error}); {INSTALL}") from error
    _quiet()
    plain = not any(mark in name for name in names for mark in "*?[")
    for every in (False, True) if plain else (True,):
        manager = TaskManager(include_path=list(folders), include_defaults=every)
        unknown = [name for name in names if not manager.match_tasks([name])]
        if unknown and not every:
            continue
        if unknown:
            alike = ", ".join(difflib.get_close_matches(unknown[0], manager.all_tasks, 3))
            mend = f"did you mean {alike}?" if alike else "name one of lm-eval's, or give --include-path DIR"
            raise UsageError(f"--tasks: lm-eval has no task {unknown[0]!r}; {mend}")
        found = manager.match_tasks(list(names))
        try:
            load = manager.load if hasattr(manager, "load") else manager.load_task_or_group  # before 0.4.12
            load(found)
        except Exception as error:  # whatever lm-eval, datasets or a task's own code raises
            if not every and set(found) & set(manager.all_groups):
                continue  # a group may name tasks of lm-eval
            mend = "some tasks need a network or more packages; see lm-eval's page of the task"
            raise UsageError(f"--tasks: {', '.join(names)}: cannot be loaded ({_line(error)}); {mend}") from error
        return found, manager
    raise AssertionError("the last round returns or raises")


def _quiet() -> None:
    """Log errors only. lm-eval still shows its progress."""
    import datasets
    import transformers

    for name in ("lm_eval", "datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _load(folder: Path, target: backends.Target, chat: bool) -> tuple[Any, Any]:
    """A plain transformers model on the target's device, and the encoder of its tokenizer; no code of the folder runs.

    Raises:
        UsageError: transformers cannot load the folder, or it has no chat template although `chat` asks for it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from engram_bench.prompts import PromptEncoder

    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        encoder = PromptEncoder(AutoTokenizer.from_pretrained(folder, **safe))
        if chat and not encoder.has_template:
            raise UsageError("--apply-chat-template: this model has no chat template; leave the option out")
        dtype = getattr(torch, target.dtype)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **safe)
    except UsageError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError, ...
        raise UsageError(f"{folder}: transformers cannot load this model: {_line(error)}") from error
    return model.to(target.device).eval().requires_grad_(False), encoder


@contextmanager
def _attached(variant: Variant, folder: Path, model: Any, encoder: Any) -> Iterator[None]:
    """Attach the adapter in a folder to a model while the context lasts.

    Raises:
        UsageError: the files are damaged or belong to another model, or the adapter needs more than a forward gives.
    """
    from engram_bench.backends.torch.adapters import EngramAdapter, EngramLoraAdapter
    from engram_bench.pretrained import EngramMemory

    loaded: Any = adapter_class(variant, "torch")
    adapter = loaded.load(model, variant.config, encoder, folder, **variant.changes)
    with ExitStack() as stack:
        if isinstance(adapter, EngramLoraAdapter):
            stack.enter_context(adapter.lora.on(model))
            adapter = adapter.memory
        if isinstance(adapter, EngramAdapter):
            stack.enter_context(EngramMemory(model, encoder, adapter).attached())
        elif adapter.memories():
            mend = "name a folder of another kind"
            raise UsageError(f"variant {variant.name}: {UNFIT.format('no token ids to its memory', mend)}")
        else:
            stack.enter_context(adapter.on(model))
        yield


def _evaluated(
    model: Any, tokenizer: Any, names: list[str], manager: Any, asked: Mapping[str, Any]
) -> lm_scores.Results:
    """The results of `lm_eval.simple_evaluate`.

    Raises:
        UsageError: a task does not fit the model, or lm-eval refuses to run it.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=asked["batch_size"])
    try:
        found: lm_scores.Results = lm_eval.simple_evaluate(
            model=wrapped, tasks=names, task_manager=manager, log_samples=False, **asked
        )
    except (ValueError, AssertionError) as error:
        raise UsageError(f"--tasks: {', '.join(names)}: lm-eval cannot run this: {_line(error)}") from error
    return found


def _line(error: BaseException) -> str:
    """The start of an error's text, or its type, as one line."""
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
