"""Evaluation on the tiny model: an answer depends only on its question, not on the questions around it."""

from dataclasses import asdict, replace

import pytest

from engram_bench.data import patterns
from engram_bench.records import GREEDY, REPEAT
from engram_bench.report import gate
from engram_bench.run import evaluate
from tests.conftest import PATTERNS, in_float32
from tests.test_report import report

CELLS = [("colours", split) for split in ("seen", "rephrased", "heldout")]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "colours.yaml"
    file.write_text(PATTERNS)
    return evaluate.questions(patterns.load(file), CELLS)


@pytest.fixture(scope="module")
def model(checkpoint):
    return in_float32(checkpoint)


def in_batches(model, asked, seed=0, batch_size=64, greedy_only=False, kept=(), step=evaluate.STEP):
    model.batch_size = batch_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "STEP", step)
        return planned_and_answered(model, asked, seed, batch_size, greedy_only, kept)


def planned_and_answered(model, asked, seed, batch_size, greedy_only, kept):
    prompts = {question.prompt: model.encoder.prompt(question.prompt) for question in asked}
    planned = evaluate.plan(asked, prompts, batch_size, 3, None, {"colours": 1}, greedy_only=greedy_only)
    options = {"seed": seed, "progress": lambda *_: None, "kept": kept}
    return list(evaluate.answer(model, "engram", planned, **options))


def answers(*args, **options):
    return [sample for batch in in_batches(*args, **options) for sample in batch]


def test_every_question_is_answered_once_and_seen_ones_are_drawn_for_too(model, asked):
    found = answers(model, asked)
    assert len({sample.key for sample in found}) == len(found) == 8 * (1 + 3) + evaluate.REPEATED + 8 + 2


def test_greedy_answers_are_asked_for_again_in_as_many_categories_as_there_are(asked):
    in_two = [replace(question, item=replace(question.item, category=f"{n % 2}")) for n, question in enumerate(asked)]
    again = [r.question.item.category for r in evaluate.requests(in_two, 3, None) if r.sample == REPEAT]
    assert sorted(again) == ["0", "0", "1", "1"]


def test_answers_record_the_tokens_of_their_prompt_unless_they_need_no_model(model, asked):
    for found in answers(model, asked):
        assert found.prompt_tokens == len(model.encoder.prompt(found.prompt).ids)
    prompts = {question.prompt: model.encoder.prompt(question.prompt) for question in asked}
    planned = evaluate.plan(asked, prompts, 64, 0, None, {"colours": 1})
    options = {"seed": 0, "progress": lambda *_: None, "known": {question.prompt: "red" for question in asked[1:]}}
    looked_up = [s for batch in evaluate.answer(model, "dictionary", planned, **options) for s in batch]
    assert [s.prompt for s in looked_up if s.prompt_tokens] == [asked[0].prompt]


def test_batches_of_1_7_and_64_give_the_same_answers_in_float32(model, asked):
    one, seven, many = ({s.key: s for s in answers(model, asked, batch_size=n)} for n in (1, 7, 64))
    assert one == seven == many


def test_what_is_kept_is_not_asked_again_and_the_rest_comes_in_the_batches_it_would_have(model, asked):
    whole = in_batches(model, asked, batch_size=7)
    kept = {s.key for batch in whole[:2] for s in batch} | {whole[3][0].key}
    assert in_batches(model, asked, kept=kept, batch_size=7) == whole[2:]
    assert in_batches(model, asked, kept={s.key for batch in whole for s in batch}, batch_size=7) == []


def test_the_answers_to_one_prompt_share_a_batch_with_the_same_prompts_whether_or_not_there_are_draws(model, asked):
    all_rows, greedy = (in_batches(model, asked, batch_size=7, greedy_only=only) for only in (False, True))
    first = [batch for batch in all_rows if batch[0].sample != REPEAT]
    assert [{s.prompt for s in batch} for batch in first] == [{s.prompt for s in batch} for batch in greedy]
    assert sum(len({s.prompt for s in batch}) for batch in first) == len({q.prompt for q in asked})
    assert [s for batch in greedy for s in batch] == [s for batch in first for s in batch if s.sample == GREEDY]
    assert max(map(len, all_rows)) <= 7
    assert max(map(len, in_batches(model, asked, batch_size=2))) == 4, "an answer and three draws"


def test_a_greedy_answer_asked_for_again_in_another_batch_is_the_same_in_float32(model, asked):
    found = {s.key: s.output for s in answers(model, asked, batch_size=7)}
    again = {key: output for key, output in found.items() if key[-1] == REPEAT}
    assert len(again) == evaluate.REPEATED
    assert all(found[(*key[:-1], GREEDY)] == output for key, output in again.items())


@pytest.mark.slow
def test_a_hundred_reruns_with_other_sampling_seeds_raise_no_alarm_beyond_the_rate(model, asked):
    """The same weights asked with other sampling seeds: one-token answers wander, and the gate holds its 5%."""

    def made(seed):
        samples = [asdict(s) for s in answers(model, asked, seed, step=1)]
        greedy = {(s["split"], s["item"]): s["output"] for s in samples if s["sample"] == GREEDY}
        for s in samples:
            s["seed"], s["exact"] = 0, s["output"] == greedy[s["split"], s["item"]]  # it knows no other right answer
        return report(samples, categories=("colours",))

    first = made(0)
    found = [gate.compare(first, made(seed), {"exact": 0.0, "consistency": 0.0}) for seed in range(1, 101)]
    assert any(row["difference"] for each in found for row in each["rows"]), "they do differ"
    assert sum(map(gate.exit_code, found)) <= 9, "5 expected at most; 9 is the binomial's 97th percentile"


def test_the_first_figures_of_a_variant_are_one_line(model, asked):
    found = answers(model, asked)
    greedy = [sample for sample in found if sample.sample == GREEDY and sample.split == "seen"]
    text = evaluate.summary(found)
    assert text.startswith(f"right: seen {sum(sample.exact for sample in greedy) / len(greedy):.0%}")
    assert text.count("%") == len({sample.split for sample in found})
    half = [replace(sample, exact=n % 2 == 0) for n, sample in enumerate(greedy[:4])]
    assert evaluate.summary(half) == "right: seen 50%"


def test_each_answer_of_a_batch_keeps_its_own_limit(model, asked):
    prompts = {question.prompt: model.encoder.prompt(question.prompt) for question in asked}
    free = [replace(question, rule=evaluate.CONTAINS) if n % 2 else question for n, question in enumerate(asked)]
    planned = evaluate.plan(free, prompts, 64, 0, None, {"colours": 1})
    assert len(planned.batches) == 1
    limits = {question.prompt: evaluate.max_tokens(question, planned.longest) for question in free}
    assert len(set(limits.values())) == 2
    (found,) = evaluate.answer(model, "baseline", planned, seed=0, progress=lambda *_: None)
    assert {sample.tokens for sample in found} >= set(limits.values()), "an untrained model does not stop"
    for sample in found:
        whole = model.generate([prompts[sample.prompt]], limits[sample.prompt])[0]
        assert sample.output == model.encoder.decode(whole)
