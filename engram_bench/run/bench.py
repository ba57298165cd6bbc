"""The bench: one model on one device; trains or loads each variant, asks it once, and keeps the results.

Suites get from it the results they assert on. It decodes all planned cells of a variant at once, to fill the batches,
and records every result for the report.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from functools import partial

from engram_bench import backends, metrics, stats
from engram_bench.backends.base import Adapter, Backend, Collateral, Progress, Text
from engram_bench.data.prompt_sets import Passage
from engram_bench.data.questions import UNTOUCHED, Question
from engram_bench.errors import UsageError
from engram_bench.memory.hashing import compress_vocabulary
from engram_bench.options import Settings
from engram_bench.records import BASELINE, GREEDY, SAMPLES, CellKey, Record, Sample
from engram_bench.run import evaluate, metadata, routed, speed
from engram_bench.run.checks import alike, faults
from engram_bench.run.kept import Kept
from engram_bench.run.passages import measure as measure_passages
from engram_bench.run.readers import EXAMPLES, Asked, Facts, Fitted, fitted, reader_of
from engram_bench.run.recorder import Recorder
from engram_bench.run.rundir import RunDir
from engram_bench.run.speed import Speed
from engram_bench.run.trained import TrainedAdapters
from engram_bench.stats import Interval
from engram_bench.store import models
from engram_bench.store.adapters import Trained
from engram_bench.store.answers import Answers
from engram_bench.store.cache import cache_dir
from engram_bench.variants import Variant
from engram_bench.variants.configs import EngramConfig, LoraConfig
from engram_bench.variants.kinds import KINDS

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
        if any(variant.config and variant.config.keyed for variant in settings.variants):
            for line in alike(settings.patterns):
                progress(line, 0, 0)
        most, encode = settings.plan.max_new_tokens or sys.maxsize, self.backend.encoder.answer
        self._longest = {
            name: min(max(len(encode(item.output)) for item in category.items), most)
            for name, category in settings.patterns.categories.items()
        }
        self.max_new_tokens = min(max(self._longest.values()) + ANSWER_MARGIN, most)
        self._check_readers()
        self.adapters = TrainedAdapters(
            settings, self.model, self.backend, self.recorder, self._named, lambda: self._run_id
        )
        store = Answers(cache_dir() / "answers.sqlite", lambda line: progress(line, 0, 0), ask=settings.reask)
        self._kept = Kept(store, self.model, self.backend, self.adapters, self.max_new_tokens)
        seconds = time.perf_counter() - started
        meta = metadata.meta(
            self.backend, self.model, settings.patterns, self.adapters.data, self.max_new_tokens, seconds
        )
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
            unasked = KINDS[self.variant(variant).kind].unasked
            planned = {(name, way) for name, way in self.planned if way not in unasked}
            cells = {CellKey(variant, *cell) for cell in planned | {(category, split)}}
            self._evaluate(self.variant(variant), cells - self._samples.keys())
        return self._samples[wanted]

    def collateral(self, variant: str, prompts: Sequence[str]) -> Collateral:
        """How far a variant shifts the model on unrelated prompts and the baseline's answers to them."""

        def measure() -> Record:
            return asdict(self.backend.collateral(self.adapter(variant), self._control_texts(prompts)))

        data = self.measured("collateral", variant, prompts, measure)
        return Collateral(**{f.name: data[f.name] for f in fields(Collateral)})

    def passages(self, variant: str, passages: Sequence[Passage]) -> list[Record]:
        """How a variant changes the continuation of running text that holds keys and asks nothing.

        Returns:
            A record for each kind of text; a passage that exceeds the model's context is left out. The divergence
            covers the untouched model's continuations alone. `firings` counts the passages in which a memory finds a
            key; None for a variant that looks for no key.
        """
        room = self.backend.context - self.max_new_tokens - 1
        fitting = [p for p in passages if len(self.backend.encoder.prompt(p.text).ids) <= room]
        found = []
        for kind in dict.fromkeys(passage.kind for passage in fitting):
            some = [passage for passage in fitting if passage.kind == kind]
            measure = partial(self._continued, variant, some)
            found.append(self.measured("passages", variant, [passage.text for passage in some], measure))
        return found

    def measured(self, kind: str, variant: str, texts: Sequence[str], measure: Callable[[], Record]) -> Record:
        """The run's record, or that of an earlier run with the same adapter, or a new one."""
        kept = partial(self._kept.record, kind, self.variant(variant), self.settings.seeds[0], texts, measure)
        return self.recorder.once(kind, variant, texts, kept)

    def _continued(self, variant: str, passages: Sequence[Passage]) -> Record:
        config, texts = self.variant(variant).config, self._control_texts([passage.text for passage in passages])
        keyed = config is not None and config.keyed
        return measure_passages(self.backend, self.adapter(variant), passages, texts, keyed=keyed)

    def recited(self, variant: str) -> Record:
        """How often a variant recites a stored value when a prompt names its key but asks for something else.

        Returns:
            The record. `told` counts answers that contain the stored value when the baseline's does not. `unchanged`
            counts answers equal to the baseline's, character for character.
        """
        categories = [name for name, way in sorted(self.planned) if way == "mention"]
        asked = evaluate.questions(
            self.settings.patterns, [(name, "mention") for name in categories], self.settings.plan.most
        )
        values = {question.prompt: question.unwanted for question in asked}

        def measure() -> Record:
            told = same = count = 0
            for sample in (s for name in categories for s in self.samples(variant, name, "mention")):
                new, old = sample.output, sample.expected
                recited = any(metrics.contains(new, v) and not metrics.contains(old, v) for v in values[sample.prompt])
                told, same, count = told + recited, same + sample.exact, count + 1
            seeds = max(1, count / max(1, len(values)))  # each prompt counts once, with its mean over training seeds
            return {"told": stats.rate(told / seeds, len(values)), "unchanged": stats.rate(same / seeds, len(values))}

        return self.recorder.once("mention", variant, list(values), measure)

    def speed(self) -> dict[str, Speed]:
        """Speed at batch 1, on a prompt of the data, of each variant that differs in more than its training or weights.

        Leaves out those that ask in another way.
        """
        prompt = self.backend.encoder.prompt(self.settings.patterns.first_seen()[1])
        alike = {
            (v.kind, v.router, repr(v.config)): v.name for v in self.settings.variants[::-1] if not reader_of(v.kind)
        }
        names = [v.name for v in self.settings.variants if v.name in alike.values()]
        found = speed.measure(self.backend, {name: self.adapter(name) for name in names}, prompt)
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

    def solved_examples(self, variant: str, category: str, split: str) -> int:
        """The fewest solved examples that a variant shows before a question of a cell."""
        asked = evaluate.questions(self.settings.patterns, [(category, split)], self.settings.plan.most)
        read = self._read(self.variant(variant), asked, self.settings.seeds[0])
        return min((len(found.asked.earlier) for found in read.values()), default=0)

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

    def routed(self, variant: str) -> list[Record]:
        """Record the routing table, with the memory of a variant; see `run.routed`."""
        trained = self.settings.patterns.trained_inputs()
        found = routed.table(self.backend, self.adapter(variant), trained, self.max_new_tokens)
        for row in found:
            self.recorder.add("routed", {"variant": variant, **row})
        return found

    # --- answers --------------------------------------------------------------------------------------------------

    def _control_texts(self, prompts: Sequence[str]) -> list[Text]:
        """Prompts with the baseline's answers, which are generated once."""
        if tuple(prompts) not in self._controls:
            encoded = [self.backend.encoder.prompt(prompt) for prompt in prompts]
            answers = self._kept.asking(None, 0)(encoded, self.max_new_tokens)
            self._controls[tuple(prompts)] = list(zip(encoded, answers, strict=True))
        return self._controls[tuple(prompts)]

    def _evaluate(self, variant: Variant, cells: Iterable[CellKey]) -> None:
        """Answer all questions of some cells, with every training seed."""
        wanted = sorted({(cell.category, cell.split) for cell in cells})
        asked = evaluate.questions(self.settings.patterns, wanted, self.settings.plan.most)
        seeds = self.settings.seeds if variant.config else self.settings.seeds[:1]
        found: dict[CellKey, list[Sample]] = {cell: [] for cell in cells}
        for seed in seeds:
            for sample in self._answers(variant, asked, seed):
                if sample.key.cell in found:
                    found[sample.key.cell].append(sample)
        self._samples |= found
        self._named(variant)(evaluate.summary(sample for cell in found.values() for sample in cell), 0, 0)

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
            self._longest,
            greedy_only=variant.control,  # no claim about a control uses consistency
        )
        generate = self._kept.asking(variant, seed)
        with run.alone(f"{variant.name}-{seed}") if run else nullcontext():
            kept = {sample.key: sample for sample in (Sample(**row) for row in run.read(SAMPLES))} if run else {}
            started = time.perf_counter()
            batches = evaluate.answer(
                self.backend,
                variant.name,
                planned,
                seed=seed,
                progress=self._named(variant),
                generate=generate,
                kept=kept.keys(),
                untouched=self._untouched(variant, asked),
                known={text: found.asked.answer for text, found in read.items() if found.asked.answer is not None},
                recurring=not any(found.asked.earlier for found in read.values()),
            )
            with self.backend.attached(adapter):
                before = 0
                for batch in batches:
                    if run:
                        run.append(SAMPLES, map(asdict, batch))
                    kept |= {sample.key: sample for sample in batch}
                    seconds = time.perf_counter() - started
                    started += seconds
                    cost = {"seconds": seconds, "peak_memory": self.backend.peak_memory()}
                    cost["kept"], before = generate.kept - before, generate.kept
                    self.recorder.add_line({"type": "answered", "variant": variant.name, **cost})
        return [sample for sample in kept.values() if (sample.variant, sample.seed) == (variant.name, seed)]

    def _untouched(self, variant: Variant, asked: Sequence[Question]) -> dict[str, str] | None:
        """The baseline's answers to questions that they decide, by prompt; None for the baseline itself."""
        if variant.name == BASELINE:
            return None
        cells = {(q.item.category, q.split) for q in asked if q.rule == UNTOUCHED}
        samples = [sample for cell in sorted(cells) for sample in self.samples(BASELINE, *cell)]
        return {sample.prompt: sample.output for sample in samples if sample.sample == GREEDY}

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
        facts = Facts(self.settings.patterns, seed)
        room = self.backend.context - max(evaluate.max_tokens(question, self._longest) for question in asked)
        try:
            return {q.prompt: fitted(reader, q, facts, encode, room) for q in asked}
        except UsageError as error:
            raise UsageError(f"variant {variant.name}: {error}") from error

    def _named(self, variant: Variant) -> Progress:
        return lambda what, done, total: self._progress(f"{variant.name}: {what}", done, total)
