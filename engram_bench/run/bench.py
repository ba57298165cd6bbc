"""The bench: one model on one device, each variant trained (or loaded) and asked at most once, results kept.

Suites ask it for what they assert on; it evaluates a variant on everything the session will need in one go, which
decodes full batches, and leaves a record of every result for the report.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from engram_bench import backends, metrics, stats
from engram_bench.backends.base import Backend, Divergence, Progress, Text
from engram_bench.data.items import Item
from engram_bench.errors import UsageError
from engram_bench.memory.hashing import compress_vocabulary
from engram_bench.options import Settings
from engram_bench.records import Record
from engram_bench.run import evaluate, speed
from engram_bench.run import metadata as describe
from engram_bench.run.evaluate import Question, Sample
from engram_bench.run.exact_lookup import Beside
from engram_bench.run.rundir import RECORDS, SAMPLES, RunDir
from engram_bench.run.speed import Speed
from engram_bench.stats import Interval
from engram_bench.store import adapters, models
from engram_bench.variants import BESIDE, EngramConfig, LoraConfig, Variant

ANSWER_MARGIN = 1  # tokens beyond the longest canonical answer: what has not ended by then is wrong already


class Bench:
    """Everything a session measures.

    Args:
        settings: what to do.
        progress: told of training and decoding as they go.
        emit: takes each record as soon as it exists, until `keep_in` names a place for them. A record is plain data:
            {"type": "meta" | "variant" | "answered" | "collateral" | "mention" | "routing" | "speed" | "lookup" |
            "threshold", ...}.
    """

    def __init__(self, settings: Settings, progress: Progress, emit: Callable[[Record], None]) -> None:
        self.settings, self._progress, self._emit = settings, progress, emit
        self.planned: set[tuple[str, str]] = set()  # (category, split) cells the session will ask for
        self._samples: dict[tuple[str, str, str], list[Sample]] = {}
        self._trained: dict[tuple[str, int], adapters.Trained] = {}
        self._loaded: dict[tuple[str, int], Any] = {}
        self._own: dict[str, Backend] = {}
        self._controls: dict[tuple[str, ...], list[Text]] = {}
        self.run: RunDir | None = None
        self._run_id = uuid.uuid4().hex

        started = time.perf_counter()
        target = backends.find(settings.backend, settings.lora_engine)
        for variant in settings.variants:
            if isinstance(variant.config, LoraConfig) and variant.config.four_bit and target.lora_engine != "unsloth":
                why = f"{target.lora_engine} trains a LoRA here ({target.lora_engine_reason})"
                raise UsageError(f"variant {variant.name}: Unsloth alone trains in 4 bits, and {why}; drop four_bit")
        progress(f"model {settings.model}", 0, 1)
        self.model = models.resolve(settings.model)
        self._load = partial(target.load, self.model.folder)
        self.backend = self._load()
        progress(f"model {settings.model}", 1, 1)
        categories = settings.patterns.categories.values()
        self._examples = settings.patterns.training_examples()
        self._validation = settings.patterns.validation_examples()
        longest = max(len(self.backend.encoder.answer(item.output)) for c in categories for item in c.items)
        self.max_new_tokens = min(longest + ANSWER_MARGIN, settings.plan.max_new_tokens or sys.maxsize)
        seconds = time.perf_counter() - started
        emit(describe.meta(self.backend, self.model, settings.patterns, self.max_new_tokens, seconds))

    def keep_in(self, run: RunDir) -> None:
        """From here on, take what the run directory has, and add to it what it has not."""
        self.run, self._run_id = run, run.id
        self._emit = lambda record: run.append(RECORDS, [record])

    def fingerprint(self) -> Record:
        """What decides the answers: a run is taken up again only where all of it is the same."""
        settings, backend = self.settings, self.backend
        return {
            "model": self.model.sha256,
            "dataset": settings.patterns.sha256,
            "prompt": describe.prompt_sha256(backend.encoder),
            "backend": [backend.name, backend.device, backend.dtype, backend.batch_size],
            "max_new_tokens": self.max_new_tokens,
            "samples": [settings.samples, settings.sampled_items],
            "seeds": list(settings.seeds),
            "variants": {
                v.name: [v.kind, v.damage, v.router, v.control, self._folder(v, 0).name if v.config else None]
                for v in settings.variants
            },
        }

    def variant(self, name: str) -> Variant:
        return next(v for v in self.settings.variants if v.name == name)

    def samples(self, variant: str, category: str, split: str) -> list[Sample]:
        """All answers of one cell, evaluated now if nothing has asked for them before."""
        if (variant, category, split) not in self._samples:
            cells = {(c, s) for c, s in self.planned | {(category, split)} if (variant, c, s) not in self._samples}
            self._evaluate(self.variant(variant), cells)
        return self._samples[variant, category, split]

    def divergence(self, variant: str, prompts: Sequence[str]) -> Divergence:
        """How far a variant moves the model on unrelated prompts and the baseline's own answers to them."""

        def measure() -> Record:
            return asdict(self.backend.divergence(self.adapter(variant), self._control_texts(prompts)))

        data = self._once("collateral", variant, prompts, measure)
        return Divergence(**{f.name: data[f.name] for f in fields(Divergence)})

    def mentions(self, variant: str, asked: Sequence[tuple[str, Item]]) -> Record:
        """What a variant answers to prompts that name a stored input and ask for something else.

        Returns:
            The record: `told` counts answers that start with what is stored, the baseline's answer not doing so;
            `unchanged` those that are the baseline's to the letter.
        """

        def measure() -> Record:
            texts = self._control_texts([prompt for prompt, _ in asked])
            with self.backend.attached(self.adapter(variant)):
                answers = self.backend.generate([prompt for prompt, _ in texts], self.max_new_tokens)
            told = unchanged = 0
            for (_, item), (_, before), after in zip(asked, texts, answers, strict=True):
                old, new = self.backend.encoder.decode(before), self.backend.encoder.decode(after)
                told += metrics.prefix(new, item.output) and not metrics.prefix(old, item.output)
                unchanged += new == old
            return {"told": stats.rate(told, len(asked)), "unchanged": stats.rate(unchanged, len(asked))}

        return self._once("mention", variant, [prompt for prompt, _ in asked], measure)

    def _once(self, kind: str, variant: str, prompts: Sequence[str], measure: Callable[[], Record]) -> Record:
        """What was measured of a variant on these prompts: the run's record of it, or one made now."""
        identity = {"variant": variant, "prompts": len(prompts), "prompts_sha256": describe.texts_sha256(prompts)}
        for known in self._recorded(kind):
            data: Record = known["data"]
            if identity.items() <= data.items():
                return data
        data = {**identity, **measure()}
        self._emit({"type": kind, "data": data})
        return data

    def _control_texts(self, prompts: Sequence[str]) -> list[Text]:
        """Prompts and what the untouched model answers, asked once."""
        if tuple(prompts) not in self._controls:
            encoded = [self.backend.encoder.prompt(prompt) for prompt in prompts]
            answers = self.backend.generate(encoded, self.max_new_tokens)
            self._controls[tuple(prompts)] = list(zip(encoded, answers, strict=True))
        return self._controls[tuple(prompts)]

    def speed(self) -> dict[str, Speed]:
        """How fast each variant that answers by itself does so, a prompt of the data at a time."""
        category = next(iter(self.settings.patterns.categories.values()))
        prompt = self.backend.encoder.prompt(category.question(category.split("seen")[0], "seen")[1])
        by_itself = [variant.name for variant in self.settings.variants if variant.kind not in BESIDE]
        found = speed.measure(self.backend, {name: self.adapter(name) for name in by_itself}, prompt)
        for name, measured in found.items():
            self._emit({"type": "speed", "data": {"variant": name, **asdict(measured)}})
        return found

    def lookup(self, variant: str) -> list[dict[str, float]]:
        """How long an n-gram memory of a variant's shape looks for its rows, by table size."""
        config = self.variant(variant).config
        assert isinstance(config, EngramConfig), f"{variant} has no tables of n-grams"
        found = speed.lookup_times(config, compress_vocabulary(self.backend.encoder.tokenizer))
        for measured in found:
            self._emit({"type": "lookup", "data": measured})
        return found

    def adapter(self, variant: str) -> Any | None:
        """The adapter of a variant and the first training seed, trained now if the cache has none."""
        return self._loaded_adapter(self.variant(variant), self.settings.seeds[0])

    def backend_of(self, variant: str) -> Backend:
        """A model of the variant's own, for what happens side by side; loaded when first asked for."""
        if variant not in self._own:
            self._own[variant] = self._load()
        return self._own[variant]

    def is_trained(self, variant: str) -> bool:
        """Whether the cache has the adapter of a variant and the first training seed, or it needs none."""
        found = self.variant(variant)
        return found.config is None or self._folder(found, self.settings.seeds[0]).is_dir()

    def trained(self, variant: str, seed: int) -> adapters.Trained:
        """Where the adapter of a seed lies and how it was trained."""
        self._loaded_adapter(self.variant(variant), seed)
        return self._trained[variant, seed]

    def threshold(self, id: str, requirement: str, measured: float, low: float, passed: bool) -> None:
        """Put an assertion on record, whatever comes of it."""
        numbers = {"measured": float(measured), "low": float(low)}
        data = {"id": id, "requirement": requirement, **numbers, "passed": bool(passed)}
        self._emit({"type": "threshold", "data": data})

    def routing(self, router: str, prompt_set: str, prompts: int, precision: Interval, recall: Interval) -> None:
        """Put on record how well a router told the prompts of a set apart."""
        data: Record = {"router": router, "set": prompt_set, "prompts": prompts}
        for name, found in (("precision", precision), ("recall", recall)):
            data |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        self._emit({"type": "routing", "data": data})

    def _evaluate(self, variant: Variant, cells: Iterable[tuple[str, str]]) -> None:
        asked = evaluate.questions(self.settings.patterns, cells)
        seeds = self.settings.seeds if variant.config else self.settings.seeds[:1]
        found: list[Sample] = []
        for seed in seeds:
            found += self._answers(variant, asked, seed)
        for category, split in cells:
            cell = [s for s in found if (s.category, s.split) == (category, split)]
            self._samples[variant.name, category, split] = cell

    def _answers(self, variant: Variant, asked: Sequence[Question], seed: int) -> list[Sample]:
        adapter = self._loaded_adapter(variant, seed)
        run = self.run
        with run.alone(f"{variant.name}-{seed}") if run else nullcontext():
            kept = {sample.key: sample for sample in (Sample(**row) for row in run.read(SAMPLES))} if run else {}
            started = time.perf_counter()
            batches = evaluate.answer(
                self.backend,
                variant.name,
                asked,
                seed=seed,
                samples=self.settings.samples,
                greedy_only=variant.control,  # it claims no consistency
                sampled_items=self.settings.sampled_items,
                max_new_tokens=self.max_new_tokens,
                progress=self._named(variant),
                kept=kept.keys(),
                beside=self._beside(variant),
            )
            with self.backend.attached(adapter):
                for batch in batches:
                    if run:
                        run.append(SAMPLES, map(asdict, batch))
                    kept |= {sample.key: sample for sample in batch}
                    seconds = time.perf_counter() - started
                    started += seconds
                    cost = {"seconds": seconds, "peak_memory": self.backend.peak_memory()}
                    self._emit({"type": "answered", "variant": variant.name, **cost})
        return [sample for sample in kept.values() if (sample.variant, sample.seed) == (variant.name, seed)]

    def _beside(self, variant: Variant) -> Beside | None:
        """The trained pairs, for a variant that keeps them beside the model."""
        if variant.kind not in BESIDE:
            return None
        categories = self.settings.patterns.categories.values()
        return Beside(variant.kind, tuple(item for category in categories for item in category.split("seen")))

    def _recorded(self, kind: str) -> list[Record]:
        """Records of a kind that processes of this run have left so far."""
        return [r for r in self.run.read(RECORDS) if r["type"] == kind] if self.run else []

    def _loaded_adapter(self, variant: Variant, seed: int) -> Any | None:
        """The variant's adapter of a seed, trained if the cache has none; None for a variant that trains nothing."""
        if variant.config is None:
            self._emit({"type": "variant", "data": describe.untrained(variant)})
            return None
        key = (variant.name, seed)
        if key not in self._loaded:
            trained = adapters.ensure(
                self._trainer(variant),
                self.model,
                variant,
                self._examples,
                self._validation,
                seed,
                run_id=self._run_id,
                retrain=self.settings.retrain,
                progress=self._named(variant),
            )
            self._loaded[key] = self.backend.load_adapter(variant, trained.folder)
            self._trained[key] = trained
            parameters = self.backend.trainable_parameters(self._loaded[key])
            data = describe.trained(variant, trained, seed, self._trainer(variant), parameters)
            self._emit({"type": "variant", "data": data})
        return self._loaded[key]

    def _folder(self, variant: Variant, seed: int) -> Path:
        trainer = self._trainer(variant)
        return adapters.folder_of(trainer, self.model, variant, self._examples, self._validation, seed)

    def _trainer(self, variant: Variant) -> Backend:
        """The backend that trains a variant: this one, unless it is slow, may borrow, and can read what torch wrote."""
        slow = (self.backend.name, self.backend.device) == ("mlx", "cpu")
        borrowed = slow and self.settings.plan.borrows and isinstance(variant.config, EngramConfig)
        return self._lender if borrowed else self.backend

    @cached_property
    def _lender(self) -> Backend:
        return backends.find("cpu").load(self.model.folder)

    def _named(self, variant: Variant) -> Progress:
        return lambda what, done, total: self._progress(f"{variant.name}: {what}", done, total)
