"""The hearing memory: where it acts, in torch and in MLX."""

from dataclasses import replace

import numpy as np
import pytest

from engram_bench import cli, variants
from engram_bench.backends.torch.backend import TorchModel
from engram_bench.backends.torch.hearing_writing import Fact, write
from engram_bench.data import training
from engram_bench.data.items import Category, Example, Item, PatternSet, Wordings, item_id
from engram_bench.errors import UsageError
from engram_bench.memory.hearing import CURRENT, KEY, PREVIOUS, HeardKeys, active
from engram_bench.memory.keys import KeyIndex, key_id, key_name
from engram_bench.prompts import ABSENT, extend_windows
from engram_bench.store import adapters

HEARING = """\
name: tiny-hearing
kind: engram-hearing
about: for tests
layers: [0, 1]
reader: 1
rank: 4
alpha: 8
training: {epochs: 40, batch_size: 8, lr: 1.0e-2, table_lr: 0.2}
"""
FACTS = {"Brellix": "red", "Tom Hale": "blue", "Zorna": "green", "Quorl": "black"}
SENTENCES = ("the colour of {}", "What colour has {}?", "{} and its colour")
PROMPTS = [sentence.format(name) for name in FACTS for sentence in SENTENCES]
ELSEWHERE = "What is a good colour for a boat?"


def example(sentence, name):
    start = sentence.index("{}")
    return Example(sentence.format(name), FACTS[name], None, (start, start + len(name)))


EXAMPLES = [example(sentence, name) for name in FACTS for sentence in SENTENCES]


def index(*keys):
    return KeyIndex({key_name(key): () for key in keys})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Who made Brellix?", ["Brellix"]),
        ("who made brellix", ["brellix"]),
        ("**Brellix**, “Brellix” and `Brellix`", ["Brellix"] * 3),
        ("Brellix's shop, the Brellixes, two Brellixs", ["Brellix", "Brellixes", "Brellixs"]),
        ("the founder of  Brellix, and Brellix", ["the founder of  Brellix", "Brellix"]),
        ("Tom\n Hale and tom hale", ["Tom\n Hale", "tom hale"]),
        ("Brellixo, xBrellix, Tom, Hale", []),
        ("Gas and gases; ga", ["Gas", "gases"]),
    ],
)
def test_every_key_is_found_as_people_write_it(text, found):
    keys = index("Brellix", "Tom Hale", "the founder of Brellix", "Gas")
    assert [text[key.start : key.end] for key in keys.every(text)] == found


def test_a_name_is_marked_in_the_examples_of_an_item_that_has_one():
    items = [
        Item(item_id("towns", f"CAPITAL:{name}"), "towns", f"CAPITAL:{name}", value, names=(name,))
        for name, value in (("France", "Paris"), ("Chad", "N'Djamena"), ("Peru", "Lima"), ("Oman", "Muscat"))
    ]
    wordings = {"": Wordings(trained=("Which town rules {name}?", "Read {input} aloud."))}
    category = Category("towns", "own", "", ("{input}",), ("Say {input}",), tuple(items), "", wordings, holds_out=False)
    found = training.training_set(PatternSet({"towns": category}), "rich").examples
    named = {e.prompt: e.prompt[slice(*e.name)] if e.name else None for e in found}
    assert named["CAPITAL:France"] == named["Which town rules France?"] == "France"
    pairs = [name for prompt, name in named.items() if sum(item.names[0] in prompt for item in items) > 1]
    assert set(pairs) == {None}


@pytest.fixture
def model(checkpoint):
    return TorchModel(checkpoint, "cpu")


def test_a_window_has_the_key_at_its_last_token_and_the_reader_acts_from_there_on(model):
    keys = HeardKeys([key_name("Tom Hale"), key_name("Zorna")])
    text = "So Tom Hale's uncle met Zorna."
    prompt, answer = model.encoder.prompt(text), model.encoder.answer("red")[:-1]
    windows = keys.windows(prompt, answer)
    own = [place for place, mine in enumerate(prompt.content) if mine]
    first, second = (
        own[prompt.tokens_at(text.index(name), text.index(name) + len(name))[1] - 1] for name in ("Tom Hale", "Zorna")
    )
    assert keys.places(prompt) == [(first, key_id("tom hale")), (second, key_id("zorna"))]
    assert keys.rows(windows)[..., 0].nonzero()[0].tolist() == [first, second]
    assert keys.rows(windows)[[first, second], 0].tolist() == [1, 2]
    assert active(windows)[:, 0].tolist() == [0] * first + [1] * (len(windows) - first)
    assert (windows[active(windows)[:, 0] == 1, CURRENT] == [*prompt.ids, *answer][first:]).all()


def test_a_token_of_the_answer_ends_no_key_again(model):
    """Also after a prompt that ends with the key."""
    keys = HeardKeys([key_name("Zorna")])
    last = np.array([[7, ABSENT, key_id("zorna")]])
    following = extend_windows(last, np.array([9]))
    assert following[0, [CURRENT, PREVIOUS, KEY]].tolist() == [9, 7, key_id("zorna")]
    assert keys.rows(last).tolist() == [[1]]
    assert keys.rows(following).tolist() == [[0]]


@pytest.fixture(scope="session")
def folder(checkpoint, tmp_path_factory):
    """A hearing memory of `FACTS`, trained in torch."""
    folder = tmp_path_factory.mktemp("hearing")
    variant = variants.parse(HEARING, "test")
    TorchModel(checkpoint, "cpu").train(variant, EXAMPLES, 0, folder, lambda *_: None, replay=["I met Zorna", "Hi"])
    return folder


def load(model, folder, **changes):
    return model.load_adapter(replace(variants.parse(HEARING, "test"), **changes), folder)


def answers(model, adapter, texts):
    prompts = [model.encoder.prompt(text) for text in texts]
    with model.attached(adapter):
        return [model.encoder.decode(ids) for ids in model.generate(prompts, 6)]


def scores(model, adapter, texts):
    """Log-probabilities of an answer to each text."""
    pairs = [(model.encoder.prompt(text), model.encoder.answer("green")) for text in texts]
    with model.attached(adapter):
        return np.array([model.log_probabilities([pair])[0] for pair in pairs])


def test_it_learns_and_answers_alike_alone_and_in_batches(model, folder):
    found = answers(model, load(model, folder), PROMPTS)
    assert found == [FACTS[name] for name in FACTS for _ in SENTENCES]
    assert found == [answers(model, load(model, folder), [text])[0] for text in PROMPTS]


def test_a_text_without_a_key_is_left_alone_bit_for_bit(model, folder):
    adapter = load(model, folder)
    assert (scores(model, adapter, [ELSEWHERE]) == scores(model, None, [ELSEWHERE])).all()
    pair = (model.encoder.prompt(ELSEWHERE), model.encoder.answer("blue"))
    assert model.collateral(adapter, [pair]).kl_max == 0
    assert answers(model, adapter, [ELSEWHERE, *PROMPTS])[0] == answers(model, None, [ELSEWHERE])[0]


def test_its_rows_carry_the_facts(model, folder):
    right = [FACTS[name] for name in FACTS for _ in SENTENCES]
    for damage in ("zero", "shuffle"):
        found = answers(model, load(model, folder, damage=damage), PROMPTS)
        assert sum(a == b for a, b in zip(found, right, strict=True)) <= len(right) / 2


@pytest.mark.parametrize("damage", [None, "zero", "shuffle"])
def test_mlx_computes_the_same_from_the_same_files(model, folder, checkpoint, damage):
    pytest.importorskip("mlx.core", reason="MLX is not installed")
    from engram_bench.backends.mlx.backend import MlxModel

    other = MlxModel(checkpoint, "cpu")
    texts = [*PROMPTS, ELSEWHERE]
    ours, theirs = (scores(m, load(m, folder, damage=damage), texts) for m in (model, other))
    assert np.allclose(ours, theirs, atol=1e-4)
    assert (theirs[-1] == scores(other, None, texts)[-1]).all()
    assert load(model, folder).parameter_count() == load(other, folder).parameter_count()


@pytest.mark.parametrize("width", [0, 8])
def test_what_mlx_trained_torch_loads(model, checkpoint, tmp_path, width):
    pytest.importorskip("mlx.core", reason="MLX is not installed")
    from engram_bench.backends.mlx.backend import MlxModel

    other = MlxModel(checkpoint, "cpu")
    variant = variants.parse(HEARING.replace("epochs: 40", "epochs: 4") + f"width: {width}\n", "test")
    other.train(variant, EXAMPLES, 0, tmp_path, lambda *_: None, replay=["I met Zorna", "Hi"])
    ours, theirs = (scores(m, m.load_adapter(variant, tmp_path), PROMPTS) for m in (model, other))
    assert np.allclose(ours, theirs, atol=1e-4)
    assert not np.allclose(theirs, scores(other, None, PROMPTS), atol=1e-2)


def test_a_reader_alone_is_a_variant(model, tmp_path):
    variant = variants.parse(HEARING.replace("layers: [0, 1]", "layers: []"), "test")
    model.train(variant, EXAMPLES, 0, tmp_path, lambda *_: None)
    adapter = model.load_adapter(variant, tmp_path)
    assert adapter.rows == {}
    assert not np.allclose(scores(model, adapter, PROMPTS), scores(model, None, PROMPTS), atol=1e-2)
    assert (scores(model, adapter, [ELSEWHERE]) == scores(model, None, [ELSEWHERE])).all()


def test_files_of_another_shape_are_refused(model, folder):
    variant = variants.parse(HEARING.replace("rank: 4", "rank: 2"), "test")
    with pytest.raises(UsageError, match="rank differ from what this variant needs"):
        model.load_adapter(variant, folder)


def pair(model, text, key, name):
    spans = [(text.index(part), text.index(part) + len(part)) if part else None for part in (key, name)]
    return model.encoder.pair(Example(text, "red", *spans))


def test_a_key_within_a_word_is_refused_before_training(model):
    with pytest.raises(UsageError, match="'K:Zor' is part of a longer word in 'What is K:Zornay"):
        HeardKeys.of_training([pair(model, "What is K:Zornay?", "K:Zor", "Zor")])


def test_a_plain_name_within_a_word_is_left_out(model):
    pairs = [pair(model, "K:Zorna", "K:Zorna", "Zorna"), pair(model, "How many Zornas or Zornalings?", None, "Zorna")]
    keys = HeardKeys.of_training([*pairs, pair(model, "What are Zornalings?", None, "Zorna")])
    assert keys.names == ("zorna",)


def test_a_short_name_is_heard_with_its_whole_key_alone(model):
    keys = HeardKeys.of_training([pair(model, "Look up ELEMENT:In", "ELEMENT:In", "In")])
    assert keys.names == (key_name("ELEMENT:In"),)
    assert keys.span(model.encoder.prompt("What is in the box?")) is None
    assert HeardKeys.of_training([pair(model, "Which element is In?", None, "In")]).names == ()


def test_the_built_in_controls_are_the_same_memory():
    hearing, shuffled, zeroed, reader = variants.select(
        "engram-hearing,engram-hearing-shuffled,engram-hearing-zeroed,engram-hearing-reader"
    )[1:]
    assert (shuffled.config, zeroed.config) == (hearing.config, hearing.config)
    assert replace(reader.config, layers=hearing.config.layers) == hearing.config
    assert replace(reader.training, table_lr=hearing.training.table_lr) == hearing.training
    for depth in range(2, 65):
        hearing.config.check(depth)


@pytest.fixture
def written(model, folder):
    """The memory of `FACTS` and two facts of names that it did not know; what came of writing them."""
    adapter = load(model, folder)
    return adapter, write(model, adapter, NEW)


NEW = [Fact("the colour of Mirwyn", "red", "Mirwyn"), Fact("the colour of Kesux", "green", "Kesux")]


def test_written_facts_are_answered_and_nothing_else_changes(model, folder, written):
    adapter, found = written
    before = load(model, folder)
    assert answers(model, adapter, [fact.key for fact in NEW]) == [fact.value for fact in NEW]
    texts = [*PROMPTS, ELSEWHERE]
    assert (scores(model, adapter, texts) == scores(model, before, texts)).all()
    assert found.rows == len(NEW) * len(adapter.rows)
    assert adapter.keys.names == (*before.keys.names, "mirwyn", "kesux")


def test_a_known_name_takes_another_fact_and_other_names_keep_theirs(model, folder):
    adapter, others = load(model, folder), [text for text in PROMPTS if "Zorna" not in text]
    before = scores(model, adapter, others)
    rows = {layer: memory.table.detach().clone() for layer, memory in adapter.rows.items()}
    found = write(model, adapter, [Fact("the size of Zorna", "blue", "Zorna")])
    assert answers(model, adapter, ["the size of Zorna"]) == ["blue"]
    assert found.rows == 0
    assert (scores(model, adapter, others) == before).all()
    changed = {
        layer: (memory.table != rows[layer]).any(dim=1).nonzero()[:, 0].tolist()
        for layer, memory in adapter.rows.items()
    }
    zorna = 1 + adapter.keys.names.index("zorna")
    assert set(map(tuple, changed.values())) == {(zorna,)}


def test_written_rows_are_saved(model, written, tmp_path):
    adapter, _ = written
    adapter.save(tmp_path)
    again = model.load_adapter(variants.parse(HEARING, "test"), tmp_path)
    texts = [*PROMPTS, *(fact.key for fact in NEW)]
    assert (scores(model, again, texts) == scores(model, adapter, texts)).all()


def test_the_command_lists_how_many_names_it_knows(folder, tmp_path, capsys):
    adapters.copy(folder, tmp_path, variants.parse(HEARING, "test"))
    assert cli.main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "tiny-hearing: for tests\n4 names\n"
