"""The bench: one model on one device; trains or loads each variant, asks it once, and keeps the results.

Suites get from it the results they assert on. It decodes all planned cells of a variant at once, to fill the batches,
and records every result for the report.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from functools import partial

from engram_bench import backends, metrics, stats
from engram_bench.backends.base import Adapter, Backend, Collateral, Progress, Text
from engram_bench.data.items import Item
from engram_bench.errors import UsageError
from engram_bench.memory.hashing import compress_vocabulary
from engram_bench.options import Settings
from engram_bench.records import SAMPLES, CellKey, Record, Sample
from engram_bench.run import evaluate, metadata, speed
from engram_bench.run.checks import alike, faults
from engram_bench.run.evaluate import Question
from engram_bench.run.readers import EXAMPLES, Asked, Facts, Fitted, fitted, reader_of
from engram_bench.run.recorder import Recorder
from engram_bench.run.rundir import RunDir
from engram_bench.run.speed import Speed
from engram_bench.run.trained import TrainedAdapters
from engram_bench.stats import Interval
from engram_bench.store import models
from engram_bench.store.adapters import Trained
from engram_bench.variants import Variant
from engram_bench.variants.configs import EngramConfig, LoraConfig

ANSWER_MARGIN = 1  # tokens beyond the longest canonical answer; a longer answer is wrong anyway


class Bench:
    """Makes every measurement of a session.

    Args:
        settings: options of the run.
        progress: called during training and decoding.

    Attributes:
        backend: the loaded model.
        recorder: receives each record as soon as it exists.
        planned: (category, split) pairs the session will ask for.
    """

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings, self._progress = settings, progress
        self.recorder = Recorder()
        self.planned: set[tuple[str, str]] = set()
        self._samples: dict[CellKey, list[Sample]] = {}
        self._controls: dict[tuple[str, ...], list[Text]] = {}
        self._run_id = uuid.uuid4().hex

        started = time.perf_counter()
        target = backends.find(settings.backend, settings.lora_engine)
        for variant in settings.variants:
            if isinstance(variant.config, LoraConfig) and variant.config.four_bit and target.lora_engine != "unsloth":
                why = f"{target.lora_engine} trains a LoRA here ({target.lora_engine_reason})"
                raise UsageError(f"variant {variant.name}: only Unsloth trains in 4 bits, but {why}; remove four_bit")
        progress(f"model {settings.model}", 0, 1)
        self.model = models.resolve(settings.model)
        self.load_model = partial(target.load, self.model.folder)
        self.backend: Backend = self.load_model()
        progress(f"model {settings.model}", 1, 1)
        for variant in settings.variants:
            try:
                if variant.config:
                    variant.config.check(self.backend.depth)
            except ValueError as error:
                raise UsageError(f"variant {variant.name}: {error}") from error
        if lines := faults(settings.patterns, self.backend.encoder, self.backend.stop_ids):
            raise UsageError("\n".join(lines))
        if any(isinstance(variant.config, EngramConfig) and variant.config.keyed for variant in settings.variants):
            for line in alike(settings.patterns):
                progress(line, 0, 0)
        categories = settings.patterns.categories.values()
        longest = max(len(self.backend.encoder.answer(item.output)) for c in categories for item in c.items)
        self.max_new_tokens = min(longest + ANSWER_MARGIN, settings.plan.max_new_tokens or sys.maxsize)
        self._check_readers()
        self.adapters = TrainedAdapters(
            settings, self.model, self.backend, self.recorder, self._named, lambda: self._run_id
        )
        seconds = time.perf_counter() - started
        meta = metadata.meta(self.backend, self.model, settings.patterns, self.max_new_tokens, seconds)
        self.recorder.add_line(meta)

    def attach_run(self, run: RunDir) -> None:
        """From now on, reuse the records in the run directory and add new ones to it."""
        self._run_id = run.id
        self.recorder.attach(run)

    def fingerprint(self) -> Record:
        """Everything the answers depend on; a run can be resumed only if all of it is equal."""
        settings, backend = self.settings, self.backend
        folders = {v.name: self.adapters.folder(v, 0) for v in settings.variants}
        return {
            "model": self.model.sha256,
            "dataset": settings.patterns.sha256,
            "prompt": metadata.prompt_sha256(backend.encoder),
            "backend": [backend.name, backend.device, backend.dtype, backend.batch_size],
            "max_new_tokens": self.max_new_tokens,
            "samples": [settings.samples, settings.sampled_items],
            "seeds": list(settings.seeds),
            "variants": {
                v.name: [v.kind, v.damage, v.router, v.control, folder.name if (folder := folders[v.name]) else None]
                for v in settings.variants
            },
        }

    def variant(self, name: str) -> Variant:
        """The variant of this name."""
        return next(v for v in self.settings.variants if v.name == name)

    def adapter(self, variant: str) -> Adapter | None:
        """The adapter of a variant for the first training seed; trains it if it is not cached."""
        return self.adapters.adapter(self.variant(variant), self.settings.seeds[0])

    def trained(self, variant: str, seed: int) -> Trained:
        """Folder and training record of a variant's adapter for one seed."""
        return self.adapters.trained(self.variant(variant), seed)

    # --- measurements ---------------------------------------------------------------------------------------------

    def samples(self, variant: str, category: str, split: str) -> list[Sample]:
        """All answers of one cell; generates them on the first call."""
        wanted = CellKey(variant, category, split)
        if wanted not in self._samples:
            cells = {CellKey(variant, *cell) for cell in self.planned | {(category, split)}}
            self._evaluate(self.variant(variant), cells - self._samples.keys())
        return self._samples[wanted]

    def collateral(self, variant: str, prompts: Sequence[str]) -> Collateral:
        """How far a variant shifts the model on unrelated prompts and the baseline's answers to them."""

        def measure() -> Record:
            return asdict(self.backend.collateral(self.adapter(variant), self._control_texts(prompts)))

        data = self.recorder.once("collateral", variant, prompts, measure)
        return Collateral(**{f.name: data[f.name] for f in fields(Collateral)})

    def recited(self, variant: str, asked: Sequence[tuple[str, Item]]) -> Record:
        """How often a variant recites a stored value when a prompt names its input but asks for something else.

        Returns:
            The record. `told` counts answers that start with the stored value when the baseline's does not.
            `unchanged` counts answers equal to the baseline's, character for character.
        """

        def measure() -> Record:
            texts = self._control_texts([prompt for prompt, _ in asked])
            with self.backend.attached(self.adapter(variant)):
                answers = self.backend.generate([prompt for prompt, _ in texts], self.max_new_tokens)
            recited = unchanged = 0
            for (_, item), (_, before), after in zip(asked, texts, answers, strict=True):
                old, new = self.backend.encoder.decode(before), self.backend.encoder.decode(after)
                recited += metrics.prefix(new, item.output) and not metrics.prefix(old, item.output)
                unchanged += new == old
            return {"told": stats.rate(recited, len(asked)), "unchanged": stats.rate(unchanged, len(asked))}

        return self.recorder.once("mention", variant, [prompt for prompt, _ in asked], measure)

    def speed(self) -> dict[str, Speed]:
        """Speed at batch 1 of each variant, on a prompt of the data; leaves out those that ask in another way."""
        category = next(iter(self.settings.patterns.categories.values()))
        prompt = self.backend.encoder.prompt(category.question(category.split("seen")[0], "seen")[1])
        measured_variants = [v.name for v in self.settings.variants if not reader_of(v.kind)]
        found = speed.measure(self.backend, {name: self.adapter(name) for name in measured_variants}, prompt)
        for name, measured in found.items():
            self.recorder.add("speed", {"variant": name, **asdict(measured)})
        return found

    def lookup(self, variant: str) -> list[dict[str, float]]:
        """Look-up times by table size, for an n-gram memory with the shape of a variant's."""
        config = self.variant(variant).config
        assert isinstance(config, EngramConfig), f"{variant} has no tables of n-grams"
        found = speed.lookup_times(
            config.for_depth(self.backend.depth), compress_vocabulary(self.backend.encoder.tokenizer)
        )
        for measured in found:
            self.recorder.add("lookup", measured)
        return found

    def threshold(self, id: str, requirement: str, measured: float, low: float, passed: bool) -> None:
        """Record an assertion, whether it holds or not."""
        numbers = {"measured": float(measured), "low": float(low)}
        self.recorder.add("threshold", {"id": id, "requirement": requirement, **numbers, "passed": bool(passed)})

    def routing(self, router: str, prompt_set: str, prompts: int, precision: Interval, recall: Interval) -> None:
        """Record a router's precision and recall on one set of prompts."""
        data: Record = {"router": router, "set": prompt_set, "prompts": prompts}
        for name, found in (("precision", precision), ("recall", recall)):
            data |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        self.recorder.add("routing", data)

    # --- answers --------------------------------------------------------------------------------------------------

    def _control_texts(self, prompts: Sequence[str]) -> list[Text]:
        """Prompts with the baseline's answers, which are generated once."""
        if tuple(prompts) not in self._controls:
            encoded = [self.backend.encoder.prompt(prompt) for prompt in prompts]
            answers = self.backend.generate(encoded, self.max_new_tokens)
            self._controls[tuple(prompts)] = list(zip(encoded, answers, strict=True))
        return self._controls[tuple(prompts)]

    def _evaluate(self, variant: Variant, cells: Iterable[CellKey]) -> None:
        """Answer all questions of some cells, with every training seed."""
        asked = evaluate.questions(self.settings.patterns, ((cell.category, cell.split) for cell in cells))
        seeds = self.settings.seeds if variant.config else self.settings.seeds[:1]
        found: dict[CellKey, list[Sample]] = {cell: [] for cell in cells}
        for seed in seeds:
            for sample in self._answers(variant, asked, seed):
                if sample.key.cell in found:
                    found[sample.key.cell].append(sample)
        self._samples |= found

    def _answers(self, variant: Variant, asked: Sequence[Question], seed: int) -> list[Sample]:
        adapter, run = self.adapters.adapter(variant, seed), self.recorder.run
        read = self._read(variant, asked, seed)
        if short := sum(found.most < EXAMPLES for found in read.values()):
            why = f"fewer than {EXAMPLES} solved examples, to fit the model's context of {self.backend.context} tokens"
            self._named(variant)(f"{short} of {len(read)} prompts have {why}", 0, 0)
        planned = evaluate.plan(
            asked,
            {text: found.prompt for text, found in read.items()},
            self.backend.batch_size,
            self.settings.samples,
            self.settings.sampled_items,
            greedy_only=variant.control,  # no claim about a control uses consistency
        )
        with run.alone(f"{variant.name}-{seed}") if run else nullcontext():
            kept = {sample.key: sample for sample in (Sample(**row) for row in run.read(SAMPLES))} if run else {}
            started = time.perf_counter()
            batches = evaluate.answer(
                self.backend,
                variant.name,
                planned,
                seed=seed,
                max_new_tokens=self.max_new_tokens,
                progress=self._named(variant),
                kept=kept.keys(),
                known={text: found.asked.answer for text, found in read.items() if found.asked.answer is not None},
                recurring=not any(found.asked.earlier for found in read.values()),
            )
            with self.backend.attached(adapter):
                for batch in batches:
                    if run:
                        run.append(SAMPLES, map(asdict, batch))
                    kept |= {sample.key: sample for sample in batch}
                    seconds = time.perf_counter() - started
                    started += seconds
                    cost = {"seconds": seconds, "peak_memory": self.backend.peak_memory()}
                    self.recorder.add_line({"type": "answered", "variant": variant.name, **cost})
        return [sample for sample in kept.values() if (sample.variant, sample.seed) == (variant.name, seed)]

    def _check_readers(self) -> None:
        """Read the longest question of each category: what a model cannot be asked is refused before training."""
        categories = self.settings.patterns.categories
        asked = evaluate.questions(self.settings.patterns, [(name, "seen") for name in categories])
        longest = {question.item.category: question for question in sorted(asked, key=lambda q: len(q.prompt))}
        for variant in self.settings.variants:
            self._read(variant, list(longest.values()), self.settings.seeds[0])

    def _read(self, variant: Variant, asked: Sequence[Question], seed: int) -> dict[str, Fitted]:
        """How a variant asks, by the question's text.

        Raises:
            UsageError: the model's template takes no earlier turns, or its context is too short for a prompt.
        """
        reader, encode = reader_of(variant.kind), self.backend.encoder.prompt
        if reader is None:
            return {q.prompt: Fitted(Asked(q.prompt), encode(q.prompt), EXAMPLES) for q in asked}
        facts, room = Facts(self.settings.patterns, seed), self.backend.context - self.max_new_tokens
        try:
            return {q.prompt: fitted(reader, q, facts, encode, room) for q in asked}
        except UsageError as error:
            raise UsageError(f"variant {variant.name}: {error}") from error

    def _named(self, variant: Variant) -> Progress:
        return lambda what, done, total: self._progress(f"{variant.name}: {what}", done, total)
