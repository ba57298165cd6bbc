"""The training loop: how many steps it makes, when the answers are learned, and how the learning rate follows."""

import math
from dataclasses import replace

import numpy as np
import pytest

from engram_bench.backends.training import rate, run
from engram_bench.errors import UsageError
from engram_bench.prompts import Prompt
from engram_bench.variants.configs import TrainingConfig
from tests.conftest import quiet


def pairs(count):
    return [(Prompt((n, n + 1), (True, True)), (n, n + 1, 0)) for n in range(count)]


def config(**more):
    return TrainingConfig(**{"epochs": 4, "batch_size": 8, "lr": 1.0, "steps": [5, 100], **more})


class Learner:
    """A step that gives all answers right from step `at` on, and records its learning rates and batches.

    At each answer token of a replay text, the divergence is the number of the step.
    """

    def __init__(self, at, loss=1.0):
        self.at, self.loss, self.rates, self.batches, self.replayed = at, loss, [], [], []

    def __call__(self, batch, replay, factor):
        self.rates.append(factor)
        self.batches.append(batch)
        self.replayed.append(replay)
        hits, kl = (np.ones(sum(len(answer) for _, answer in texts)) for texts in (batch, replay))
        return self.loss, hits * len(self.rates) > self.at, kl * len(self.rates)


def test_training_ends_soon_after_the_answers_are_learned():
    learner = Learner(at=20)
    training = run(learner, config(), pairs(40), 0, quiet)
    seen = 20 + 2 * 8  # once twice as many examples as there are came out right
    assert training.steps == len(learner.rates) == seen + math.ceil(seen / 5)
    assert training.ended_early
    assert training.learned == 1
    assert learner.rates[seen:] == sorted(learner.rates[seen:], reverse=True)
    assert learner.rates[-1] < 0.2 * learner.rates[seen - 1]


def test_what_is_learned_at_once_still_makes_the_least_steps():
    assert run(Learner(at=0), config(steps=[30, 100]), pairs(40), 0, quiet).steps == 30 + 6


@pytest.mark.parametrize(("count", "steps"), [(40, 100), (1600, 800)])
def test_what_is_never_learned_ends_after_the_most_steps_or_all_epochs_if_these_are_more(count, steps):
    training = run(Learner(at=10**6), config(), pairs(count), 0, quiet)
    assert (training.steps, training.ended_early, training.learned) == (steps, False, 0)
    assert len(training.losses) == training.epochs


def test_without_steps_all_epochs_are_made_however_well_it_goes():
    training = run(Learner(at=0), config(steps=[]), pairs(40), 0, quiet)
    assert (training.steps, training.epochs) == (20, 4)


def test_one_wrong_token_makes_an_answer_wrong():
    def step(batch, *_):
        hits = np.ones(sum(len(answer) for _, answer in batch), bool)
        hits[1::3] = False  # the second of three tokens
        return 1.0, hits, np.empty(0)

    assert run(step, config(), pairs(40), 0, quiet).learned == 0


def test_few_examples_come_in_smaller_batches_and_each_once_an_epoch():
    learner = Learner(at=10**6)
    run(learner, config(batch_size=32), pairs(40), 0, quiet)
    first = [pair for batch in learner.batches[:8] for pair in batch]
    assert sorted(map(len, learner.batches[:8])) == [5] * 8
    assert set(first) == set(pairs(40))


def test_replay_texts_come_in_rounds_beside_the_examples_and_do_not_count_as_learned():
    texts = pairs(50)[-9:]
    with_replay, without = Learner(at=20), Learner(at=20)
    training = run(with_replay, config(), pairs(40), 0, quiet, texts)
    assert replace(training, replay=0, replay_kl=None) == replace(
        run(without, config(), pairs(40), 0, quiet), seconds=training.seconds
    )
    assert with_replay.batches == without.batches
    assert not any(without.replayed)
    drawn = [text for some in with_replay.replayed for text in some]
    assert {len(some) for some in with_replay.replayed} == {2}, "a third of five examples, rounded up"
    rounds = [drawn[start : start + 9] for start in range(0, len(drawn) - 8, 9)]
    assert all(sorted(some, key=str) == sorted(texts, key=str) for some in rounds)
    assert rounds[0] != rounds[1]
    assert training.replay == 9
    last = [step for step, some in enumerate(with_replay.replayed, 1) for _ in some][-9:]
    assert training.replay_kl == pytest.approx(sum(last) / 9)


def test_few_replay_texts_come_at_most_once_a_step():
    learner = Learner(at=10**6)
    run(learner, config(batch_size=32, steps=[]), pairs(40), 0, quiet, pairs(50)[-2:])
    assert {len(some) for some in learner.replayed} == {2}
    assert all(len(set(some)) == 2 for some in learner.replayed)


def test_the_rate_rises_and_falls():
    rates = [rate(done, 100) for done in range(100)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.02


def test_a_loss_that_is_no_number_ends_training_with_a_line():
    with pytest.raises(UsageError, match=r"diverged.*lower lr"):
        run(Learner(at=0, loss=float("nan")), config(), pairs(4), 0, quiet)


def test_a_negative_replay_weight_is_refused():
    with pytest.raises(ValueError, match="replay_weight is -1"):
        config(replay_weight=-1)


def test_the_least_and_the_most_are_checked():
    for wrong in ([5], [0, 5], [9, 5]):
        with pytest.raises(ValueError, match="least and the most"):
            config(steps=wrong)
