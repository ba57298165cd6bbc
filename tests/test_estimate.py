"""How long a run takes, before it and while it goes on."""

import io

import pytest

from engram_bench import variants
from engram_bench.options import settle
from engram_bench.run import estimate
from engram_bench.run.estimate import DECODE, TRAIN, Left, left
from engram_bench.run.progress import Reporter


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


PARTS = {("baseline", DECODE): 10.0, ("lora", TRAIN): 100.0, ("lora", DECODE): 10.0, ("memory", TRAIN): 40.0}


def test_as_expected_what_is_left_is_the_rest(clock):
    remaining = Left(PARTS, {"lora": 50}, True, clock=clock)
    assert remaining("baseline: decode", 0, 20) == pytest.approx(160)
    clock.now = 10
    assert remaining("lora: loss 2.1", 0, 300) == pytest.approx(150)
    clock.now = 60
    assert remaining("lora: loss 1.1", 25, 300) == pytest.approx(100)  # of about 50 steps, not of 300
    clock.now = 110
    assert remaining("lora: decode", 0, 20) == pytest.approx(50)
    clock.now = 160
    assert remaining("memory: loss 0.1", 60, 60) == pytest.approx(0, abs=1e-6)


def test_a_machine_of_half_the_speed_is_believed_more_and_more(clock):
    remaining = Left(PARTS, {}, True, clock=clock)
    remaining("baseline: decode", 0, 20)
    clock.now = 20
    early = remaining("lora: loss 2.1", 0, 100)
    assert 150 < early < 300
    clock.now = 220
    late = remaining("lora: decode", 0, 20)
    assert late == pytest.approx(50 * 240 / 130)


def test_an_adapter_from_the_cache_takes_no_time(clock):
    remaining = Left(PARTS, {}, True, clock=clock)
    remaining("baseline: decode", 20, 20)
    clock.now = 10
    assert remaining("lora: decode", 0, 20) == pytest.approx(50)


def test_each_training_seed_has_its_parts(clock):
    parts = {("lora", TRAIN): 100.0, ("lora", DECODE): 10.0}
    remaining = Left(parts, {}, True, {"lora": 3}, clock)
    assert remaining("lora: loss 2.1", 0, 100) == pytest.approx(330)
    clock.now = 100
    assert remaining("lora: decode", 0, 20) == pytest.approx(230)
    clock.now = 110
    assert remaining("lora: loss 2.1", 50, 100) > 100
    clock.now = 210
    assert remaining("lora: decode", 20, 20) == pytest.approx(110, rel=0.1)


def test_elsewhere_nothing_is_said_before_a_part_of_the_work(clock):
    remaining = Left(PARTS, {}, False, clock=clock)
    assert remaining("baseline: decode", 10, 20) is None
    clock.now = 5
    assert remaining("lora: loss 2.1", 0, 100) == pytest.approx(75)  # twice as fast as the figures


def test_a_run_longer_than_expected_never_has_less_than_nothing_left(clock):
    remaining = Left(PARTS, {"lora": 10}, True, clock=clock)
    for step in range(300):
        clock.now = step
        assert remaining("lora: loss 1", step, 300) >= 0
    assert remaining("other: loss 1", 1, 2) >= 0  # a part that nobody expected


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (41, "50 s"), (90, "2 min"), (301, "6 min"), (5400, "1.5 h"), (36000, "10.0 h")]
)
def test_a_time_as_people_say_it(seconds, words):
    assert estimate.words(seconds) == words


def test_the_parts_of_a_run_are_those_of_its_variants():
    settings = settle({"engram_profile": "quick", "engram_variants": "lora,engram-shuffled,retrieval"}, lambda _: "")
    remaining = left(settings, {("facts", "seen"), ("facts", "rephrased")}, "cpu", estimate.RATE)
    assert list(remaining._each) == [
        ("baseline", DECODE), ("lora", TRAIN), ("lora", DECODE), ("engram-shuffled", DECODE), ("retrieval", DECODE)
    ]  # fmt: skip
    assert remaining._each["retrieval", DECODE] > remaining._each["baseline", DECODE]
    twice = left(settings, {("facts", "seen"), ("facts", "rephrased")}, "cpu", 2 * estimate.RATE)
    assert twice._each == {part: pytest.approx(seconds / 2) for part, seconds in remaining._each.items()}


def test_a_memory_that_acts_on_all_tokens_takes_longer_than_one_that_looks_for_keys():
    paper, keyed = (estimate.kind_of(variant) for variant in variants.select("engram,engram-keyed")[1:])
    assert estimate.training(paper, 50) > 2 * estimate.training(keyed, 50)


def test_the_line_says_what_is_left():
    stream = io.StringIO()
    reporter = Reporter(stream)
    reporter.left = lambda what, done, total: 420.0
    reporter("lora: loss 0.1", 1, 100)
    assert stream.getvalue() == "  lora: loss 0.1 1/100 0 s, about 7 min left\n"


def test_more_facts_and_more_variants_take_longer():
    some = estimate.own_facts(24, ["", "engram"])
    assert some < estimate.own_facts(24, ["", "engram", "lora"]) < estimate.own_facts(2000, ["", "lora"])
