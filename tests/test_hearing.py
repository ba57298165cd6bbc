"""The hearing memory: where it acts, what it hears, what is written into it; in torch and in MLX."""

import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from engram_bench import cli, variants
from engram_bench.backends.hearing import WritableHearing, alike
from engram_bench.backends.torch.hearing import HearingAdapter
from engram_bench.data import training
from engram_bench.data.items import Category, Example, Item, PatternSet, Wordings, item_id
from engram_bench.errors import UsageError
from engram_bench.memory import hearing, weights
from engram_bench.memory.hearing import CURRENT, NAMES, Fact, Facts, active, fact_of, statement
from engram_bench.memory.keys import KeyIndex, key_name
from engram_bench.prompts import ABSENT, extend_windows
from engram_bench.report import scorecard
from engram_bench.store import adapters, models
from tests.conftest import in_float32, make_checkpoint

HEARING = """\
name: tiny-hearing
kind: engram-hearing
about: for tests
first_layer: 0
rank: 8
alpha: 16
redraw: false
training: {epochs: 80, batch_size: 8, lr: 1.0e-2}
"""
FACTS = {"Brellix": "red", "Tom Hale": "blue", "Zorna": "green", "Quorl": "black"}
SENTENCES = ("the colour of {}", "What colour has {}?", "{} and its colour")
PROMPTS = [sentence.format(name) for name in FACTS for sentence in SENTENCES]
ELSEWHERE = "What is a good colour for a boat?"
ITEMS = {name: Item(name, "own", f"the colour of {name}", value, (name,), "colour") for name, value in FACTS.items()}
EXAMPLES = [
    Example(sentence.format(name), FACTS[name], None, (ITEMS[name],)) for name in FACTS for sentence in SENTENCES
]


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


def test_an_example_tells_whose_values_answer_it():
    items = [
        Item(item_id("towns", f"CAPITAL:{name}"), "towns", f"CAPITAL:{name}", value, names=(name,))
        for name, value in (("France", "Paris"), ("Chad", "N'Djamena"), ("Peru", "Lima"), ("Oman", "Muscat"))
    ]
    wordings = {"": Wordings(trained=("Which town rules {name}?", "Read {input} aloud."))}
    category = Category("towns", "own", "", ("{input}",), ("Say {input}",), tuple(items), "", wordings, holds_out=False)
    found = training.training_set(PatternSet({"towns": category}), "rich").examples
    assert all(example.answer == ", ".join(item.output for item in example.items) for example in found)
    assert {len(example.items) for example in found} == {1, 2}


@pytest.fixture
def model(checkpoint):
    return in_float32(checkpoint)


def told(**values):
    """Facts about the colours of names."""
    return Facts(Fact((key_name(name),), f"the colour of {name}", value) for name, value in values.items())


def test_a_token_hears_the_names_that_stand_before_it_and_its_own(model):
    facts = Facts(fact_of(item) for item in ITEMS.values())
    text = "So Tom Hale's uncle met Zorna, and Tom Hale."
    prompt, answer = model.encoder.prompt(text), model.encoder.answer("red")[:-1]
    windows = facts.windows(prompt, answer)
    own = [place for place, mine in enumerate(prompt.content) if mine]
    first, second = (
        own[prompt.tokens_at(text.index(name), text.index(name) + len(name))[1] - 1] for name in ("Tom Hale", "Zorna")
    )
    heard = [[f.names[0] for f in facts.heard(n)] if w != ABSENT else [] for w, n in windows.tolist()]
    assert heard[:first] == [[]] * first
    assert heard[first:second] == [["tom hale"]] * (second - first)
    assert heard[second:] == [["tom hale", "zorna"]] * (len(windows) - second)
    assert active(windows)[:, 0].tolist() == [0] * first + [1] * (len(windows) - first)
    assert (windows[active(windows)[:, 0] == 1, CURRENT] == [*prompt.ids, *answer][first:]).all()


def test_a_token_of_the_answer_hears_what_the_prompt_does(model):
    facts = told(Zorna="green")
    windows = facts.windows(model.encoder.prompt("Zorna"), ())
    following = extend_windows(windows[-1:], np.array([9]))
    assert following[0].tolist() == [9, windows[-1, NAMES]]


def test_a_name_in_an_earlier_turn_is_heard(model):
    facts = told(Zorna="green", Quorl="black")
    talk = [("Who is Zorna?", "Zorna is a boat, like Quorl.")]
    prompt = model.encoder.prompt("Which colour has it?", earlier=talk)
    (first, one), (again, _), (second, other) = facts.places(prompt)
    assert (one, other) == ("zorna", "quorl")
    assert "Zorna" in model.encoder.tokenizer.decode(prompt.ids[: first + 1])
    assert model.encoder.tokenizer.decode(prompt.ids[: again + 1]).count("Zorna") == 2
    assert model.encoder.tokenizer.decode(prompt.ids[: second + 1]).endswith("Quorl")
    assert facts.span(prompt) is not None
    assert facts.span(model.encoder.prompt("Which colour has it?")) is None


@pytest.fixture(scope="session")
def folder(checkpoint, tmp_path_factory):
    """A hearing memory of `FACTS`, trained in torch."""
    folder = tmp_path_factory.mktemp("hearing")
    variant = variants.parse(HEARING, "test")
    in_float32(checkpoint).train(variant, EXAMPLES, 0, folder, lambda *_: None, replay=["I met Zorna", "Hi"])
    return folder


def load(model, folder, **changes):
    return model.load_adapter(replace(variants.parse(HEARING, "test"), **changes), folder)


def writable(model, folder):
    return WritableHearing(model.encoder, model.stop_ids, load(model, folder))


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


def test_without_facts_to_hear_it_answers_something_else(model, folder):
    trained, zeroed, shuffled = (
        scores(model, load(model, folder, damage=d), PROMPTS) for d in (None, "zero", "shuffle")
    )
    assert not np.allclose(trained, zeroed, atol=1e-3)
    assert not np.allclose(trained, shuffled, atol=1e-3)
    assert not np.allclose(zeroed, shuffled, atol=1e-3)


def test_a_shuffled_memory_tells_each_name_the_facts_of_another():
    facts = told(**{name.replace(" ", "_"): value for name, value in FACTS.items()})
    shuffled = facts.damaged("shuffle")
    for name in facts.names:
        number = shuffled._number((name,))
        assert [fact.names[0] for fact in shuffled.heard(number)] != [name]
    assert [shuffled.heard(shuffled._number((name,)))[0].value for name in facts.names] != list(FACTS.values())
    zeroed = facts.damaged("zero")
    assert zeroed.heard(zeroed._number(facts.names)) == []


def test_examples_with_exchanged_values_agree_with_what_is_heard(model):
    pairs = [model.encoder.pair(example) for example in EXAMPLES]
    two = Example("Zorna and Quorl", "green, black", None, (ITEMS["Zorna"], ITEMS["Quorl"]))
    pairs.append(model.encoder.pair(two))
    variant = variants.parse(HEARING.replace("redraw: false", "redraw: true"), "test")
    adapter = HearingAdapter.create(model.model, variant.config, model.encoder, pairs)
    drawn = adapter.redrawn(pairs, random.Random(1))
    values = {fact.names[0]: fact.value for name in adapter.facts.names for fact in heard_at(adapter.facts, name)}
    assert sorted(values.values()) == sorted(FACTS.values())
    assert values != {key_name(name): value for name, value in FACTS.items()}
    for (prompt, answer), (before, _) in zip(drawn, pairs, strict=True):
        assert prompt is before
        assert model.encoder.decode(answer) == ", ".join(values[key_name(item.names[0])] for item in prompt.items)
    adapter.train(False)
    assert [fact.value for name in adapter.facts.names for fact in heard_at(adapter.facts, name)] == list(
        FACTS.values()
    )


def test_values_change_places_within_a_relation(model):
    other = Item("x", "own", "the age of Zorna", "9", ("Zorna",), "age")
    pairs = [model.encoder.pair(example) for example in (*EXAMPLES, Example("How old is Zorna?", "9", None, (other,)))]
    assert [set(known.values()) for known in alike(pairs)] == [set(FACTS.values()), {"9"}]


@pytest.mark.parametrize("redraw", ["false", "true"])
def test_trained_to_read_it_answers_facts_that_it_was_not_trained_on(model, folder, tmp_path, redraw):
    """What differs from step to step must be read, so a fact that is heard for the first time can be answered."""
    variant = variants.parse(
        HEARING.replace("redraw: false", f"redraw: {redraw}").replace("epochs: 80", "epochs: 2"), "test"
    )
    found = model.train(variant, EXAMPLES, 0, tmp_path, lambda *_: None, replay=["I met Zorna", "Hi"])
    assert found.steps == 4
    adapter = model.load_adapter(variant, tmp_path)
    assert adapter.facts.known() == {item.input: item.output for item in ITEMS.values()}


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


@pytest.mark.parametrize("redraw", ["false", "true"])
def test_what_mlx_trained_torch_loads(model, checkpoint, tmp_path, redraw):
    pytest.importorskip("mlx.core", reason="MLX is not installed")
    from engram_bench.backends.mlx.backend import MlxModel

    other = MlxModel(checkpoint, "cpu")
    variant = variants.parse(
        HEARING.replace("epochs: 80", "epochs: 4").replace("redraw: false", f"redraw: {redraw}"), "test"
    )
    other.train(variant, EXAMPLES, 0, tmp_path, lambda *_: None, replay=["I met Zorna", "Hi"])
    ours, theirs = (scores(m, m.load_adapter(variant, tmp_path), PROMPTS) for m in (model, other))
    assert np.allclose(ours, theirs, atol=1e-4)
    assert not np.allclose(theirs, scores(other, None, PROMPTS), atol=1e-2)


def test_a_reader_alone_is_a_variant(model, tmp_path):
    variant = variants.parse(HEARING + "rows: false\n", "test")
    model.train(variant, EXAMPLES, 0, tmp_path, lambda *_: None)
    adapter = model.load_adapter(variant, tmp_path)
    assert not np.allclose(scores(model, adapter, PROMPTS), scores(model, None, PROMPTS), atol=1e-2)
    assert (scores(model, adapter, [ELSEWHERE]) == scores(model, None, [ELSEWHERE])).all()
    with pytest.raises(UsageError, match="trained without facts to hear"):
        WritableHearing(model.encoder, model.stop_ids, adapter).write("the colour of Vex", "red", "Vex")


def test_files_of_another_shape_are_refused(model, folder):
    variant = variants.parse(HEARING.replace("rank: 8", "rank: 2"), "test")
    with pytest.raises(UsageError, match="rank differ from what this variant needs"):
        model.load_adapter(variant, folder)


def test_a_key_within_a_word_is_refused_before_training(model):
    item = Item("x", "own", "K:Zor", "red", ("Zor",))
    pair = model.encoder.pair(Example("What is K:Zornay?", "red", (8, 13), (item,)))
    with pytest.raises(UsageError, match="'K:Zor' is part of a longer word in 'What is K:Zornay"):
        Facts.of_training([pair])


def test_a_short_name_is_heard_with_its_whole_key_alone(model):
    item = Item("x", "own", "ELEMENT:In", "indium", ("In",))
    facts = Facts.of_training([model.encoder.pair(Example("Look up ELEMENT:In", "indium", None, (item,)))])
    assert facts.names == (key_name("ELEMENT:In"),)
    assert facts.span(model.encoder.prompt("What is in the box?")) is None


def test_the_built_in_controls_are_the_same_memory():
    names = "engram-hearing,engram-hearing-shuffled,engram-hearing-zeroed,engram-hearing-reader"
    hearing, shuffled, zeroed, reader, budget, lora = variants.select(f"{names},engram-hearing-reader-budget,lora")[1:]
    assert (shuffled.config, zeroed.config) == (hearing.config, hearing.config)
    assert replace(reader.config, rows=True, redraw=hearing.config.redraw) == hearing.config
    assert reader.training == hearing.training
    own = {name: getattr(lora.config, name) for name in ("rank", "alpha")}
    assert budget.config == replace(reader.config, **own)
    assert budget.training == lora.training
    for depth in range(2, 65):
        hearing.config.check(depth)


# --- what is heard ----------------------------------------------------------------------------------------------------


def heard_at(facts, name):
    return facts.heard(facts._number((name,)))


def test_rows_are_the_keys_and_values_of_the_statement(model, folder):
    """Computed by the untouched model, at the places just before the text."""

    adapter, fact = load(model, folder), fact_of(ITEMS["Zorna"])
    tokens = [model.encoder.eos_id, *statement(fact, model.encoder)]
    adapter.reader.hold([fact, fact_of(ITEMS["Quorl"])])
    seen = {}

    def spy(module, args, kwargs, output):
        seen["positions"] = kwargs["position_ids"]

    handle = model.model.model.layers[0].self_attn.register_forward_hook(spy, with_kwargs=True)
    adapter.reader.hold([Fact(("x",), fact.key, fact.value)])
    handle.remove()
    assert seen["positions"][0].tolist() == list(range(-len(tokens) + 1 - hearing.BEFORE, 1 - hearing.BEFORE))
    positions = torch.tensor([list(range(len(tokens)))]) - len(tokens) + 1 - hearing.BEFORE
    found = model.model(input_ids=torch.tensor([tokens]), position_ids=positions, use_cache=True).past_key_values
    keys, values = found.layers[0].keys[0, :, 1:], found.layers[0].values[0, :, 1:]
    rows = list(adapter.reader._at[fact])
    assert torch.allclose(adapter.reader._table[rows, 0, 0].transpose(0, 1), keys, atol=1e-5)
    assert torch.allclose(adapter.reader._table[rows, 0, 1].transpose(0, 1), values, atol=1e-5)


def with_any_reader(model, variant, examples):
    """A memory whose reader has random numbers, so that all that is heard counts."""
    pairs = [model.encoder.pair(example) for example in examples]
    torch.manual_seed(0)
    adapter = HearingAdapter.create(model.model, variant.config, model.encoder, pairs)
    for parameter in adapter.reader.parts.parameters():
        torch.nn.init.normal_(parameter.data, std=0.05)
    return adapter


@pytest.fixture
def any_reader(model):
    return with_any_reader(model, variants.parse(HEARING, "test"), EXAMPLES)


SEVERAL = ["Zorna and Quorl", "the colour of Brellix", ELSEWHERE, "Quorl, then Zorna and Tom Hale", *PROMPTS]


def test_a_full_table_is_emptied_and_filled_again(model, any_reader, monkeypatch):
    expected = scores(model, any_reader, SEVERAL)
    monkeypatch.setattr(hearing, "TABLE_BYTES", 30 * 384)  # a row has 384 bytes, a fact about twenty rows
    small = with_any_reader(model, variants.parse(HEARING, "test"), EXAMPLES)
    assert np.allclose(scores(model, small, SEVERAL), expected, atol=1e-5)
    assert small.reader._used < any_reader.reader._used


def test_each_text_of_a_batch_hears_its_own_names(model, any_reader):
    pairs = [(model.encoder.prompt(text), model.encoder.answer("green")) for text in SEVERAL]
    alone = scores(model, any_reader, SEVERAL)
    with model.attached(any_reader):
        together = np.array(model.log_probabilities(pairs))
    assert np.allclose(together, alone, atol=1e-4)


def test_a_token_hears_the_rows_of_the_names_before_it_alone(model, any_reader):
    windows = any_reader.windows(model.encoder.prompt("Quorl, then Zorna"), ())
    acts, *heard = any_reader.reader.slots_for(np.zeros((1, len(windows)), np.int64), windows[None])[0].T
    facts = {fact.names[0]: fact for fact in any_reader.facts.trained}
    quorl, zorna = (set(any_reader.reader._at[facts[name]]) for name in ("quorl", "zorna"))
    by_token = [set(rows.tolist()) - {0} for rows in np.array(heard).T]
    first, second = np.flatnonzero(acts)[0], next(n for n, rows in enumerate(by_token) if zorna <= rows)
    assert by_token[:first] == [set()] * first
    assert by_token[first:second] == [quorl] * (second - first)
    assert by_token[second:] == [quorl | zorna] * (len(windows) - second)
    assert second > first


# --- writing ----------------------------------------------------------------------------------------------------------

NEW = {"the colour of Mirwyn": "red", "the size of Zorna": "tall"}


def test_a_written_fact_is_heard_and_nothing_else_changes(model, folder):
    memory, others = writable(model, folder), [text for text in (*PROMPTS, ELSEWHERE) if "Zorna" not in text]
    before, asked = scores(model, memory.adapter, others), ["the colour of Mirwyn", "What size has Zorna?"]
    without = scores(model, memory.adapter, asked)
    written = memory.write("the colour of Mirwyn", "red", "Mirwyn")
    memory.write("the size of Zorna", "tall")
    assert written.rows == len(statement(Fact(("mirwyn",), "the colour of Mirwyn", "red"), model.encoder))
    assert memory.facts == NEW
    assert [fact.names[0] for fact in memory.adapter.facts.written] == ["mirwyn", "zorna"]
    assert (scores(model, memory.adapter, others) == before).all()
    assert (scores(model, memory.adapter, asked) != without).any(axis=1).all()


def test_forgetting_restores_every_bit(model, folder):
    memory, asked = writable(model, folder), [*PROMPTS, "the colour of Mirwyn", ELSEWHERE]
    before, parts = scores(model, memory.adapter, asked), memory.adapter.facts.to_array().tobytes()
    for key, value in NEW.items():
        memory.write(key, value)
    memory.forget("the size of Zorna")
    memory.forget("the colour of Mirwyn")
    assert memory.facts == {}
    assert (scores(model, memory.adapter, asked) == before).all()
    assert memory.adapter.facts.to_array().tobytes() == parts


@pytest.mark.parametrize(
    ("key", "value", "name", "problem"),
    [
        ("the colour of Zorna", "red", "", "already known"),
        ("THE COLOUR of  Zorna", "red", "", "already known"),
        (" ", "red", "", "the key is blank"),
        ("the age of Bo", "red", " ", "or its name"),
        ("the age of Bo", " ", "", "the value is blank"),
    ],
)
def test_what_cannot_be_written_is_refused(model, folder, key, value, name, problem):
    with pytest.raises(UsageError, match=problem):
        writable(model, folder).write(key, value, name)
    with pytest.raises(UsageError, match="was not written into this memory"):
        writable(model, folder).forget(key)


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of one's own with the memory of `FACTS`."""
    (tmp_path / "own").mkdir()
    adapters.copy(folder, tmp_path / "own", variants.parse(HEARING, "test"))
    return tmp_path / "own"


@pytest.mark.parametrize("backend", ["cpu", "mlx"])
def test_the_commands_write_list_and_forget(copy, checkpoint, tmp_path, capsys, backend):
    if backend == "mlx":
        pytest.importorskip("mlx.core", reason="MLX is not installed")
    on = ["--model", str(checkpoint), "--backend", backend]
    original = (copy / "memory.safetensors").read_bytes()
    cli.main(["write", str(copy), "the colour of Mirwyn", "red", "--name", "Mirwyn", *on])
    assert "rows, 1 facts)" in capsys.readouterr().out
    table = tmp_path / "more.csv"
    table.write_text("subject,relation,object\nZorna,age,nine\nMirwyn,colour,red\n")
    cli.main(["write", str(copy), "--from", str(table), *on])
    assert "the colour of Mirwyn is known already" in capsys.readouterr().out
    assert cli.main(["list", str(copy)]) == 0
    assert capsys.readouterr().out == (
        "tiny-hearing: for tests\n6 facts at 5 names, 2 of them written\n"
        "the colour of Mirwyn -> red  (heard at: mirwyn)\nthe age of Zorna -> nine  (heard at: zorna)\n"
    )
    assert cli.main(["forget", str(copy), "the colour of Mirwyn", *on]) == 0
    assert cli.main(["forget", str(copy), "the age of Zorna", *on]) == 0
    assert (copy / "memory.safetensors").read_bytes() == original
    capsys.readouterr()
    assert cli.main(["forget", str(copy), "the age of Zorna", *on]) == 2
    assert "was not written into this memory" in capsys.readouterr().err


def test_a_name_for_a_memory_that_hears_none_is_refused(tmp_path, capsys):
    weights.save(tmp_path, "engram", asdict(KEYED), {"x": np.zeros(1)})
    assert cli.main(["write", str(tmp_path), "a", "b", "--name", "a"]) == 2
    assert "--name: only a hearing memory hears names" in capsys.readouterr().err


KEYED = variants.select("engram-keyed")[1].config


# --- other models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Gemma", "Gemma2", "Mistral", "SmolLM3"])
def test_other_models_compute_the_same_in_torch_and_mlx(family, tmp_path):
    pytest.importorskip("mlx.core", reason="MLX is not installed")
    from engram_bench.backends.mlx.backend import MlxModel

    folder = make_checkpoint(tmp_path / "model", family)
    ours, theirs, variant = in_float32(folder), MlxModel(folder, "cpu"), variants.parse(HEARING, "test")
    (tmp_path / "memory").mkdir()
    with_any_reader(ours, variant, EXAMPLES).save(tmp_path / "memory")
    texts = [*PROMPTS, "Zorna and Quorl", ELSEWHERE]
    found = [scores(m, m.load_adapter(variant, tmp_path / "memory"), texts) for m in (ours, theirs)]
    untouched = scores(ours, None, texts)
    assert np.allclose(*found, atol=1e-3)
    assert not np.allclose(found[0][:-1], untouched[:-1], atol=1e-2)
    assert (found[0][-1] == untouched[-1]).all()


def test_a_model_without_query_products_is_refused(tmp_path):
    model = in_float32(make_checkpoint(tmp_path, "GPT2"))
    with pytest.raises(UsageError, match="needs attention with a q_proj"):
        with_any_reader(model, variants.parse(HEARING, "test"), EXAMPLES)


def test_a_name_is_heard_in_a_long_text(model):
    facts = told(Zorna="green")
    text = "It rained all day in the old town. " * 40 + "Then **zornas** came. " + "And it rained on. " * 10
    (place, name), *others = facts.places(model.encoder.prompt(text))
    assert (name, others) == ("zorna", [])
    assert "zorna" in model.encoder.tokenizer.decode(model.encoder.prompt(text).ids[: place + 1])


def test_an_item_whose_key_lacks_its_name_is_heard_at_both(model):
    item = Item("x", "own", "CONVERT:1 hour to min", "60", ("minutes in an hour",))
    facts = Facts.of_training([model.encoder.pair(Example("CONVERT:1 hour to min", "60", (0, 21), (item,)))])
    both = "minutes in an hour, or CONVERT:1 hour to min?"
    for text in (item.input, "How many minutes in an hour?", both):
        heard = facts.windows(model.encoder.prompt(text), ())[-1, NAMES]
        assert facts.heard(heard) == [fact_of(item)]


def test_an_adapter_is_known_again_wherever_its_facts_were_read_and_however_else_they_are_asked(model, checkpoint):
    def folder(**changes):
        items = {name: replace(item, **changes) for name, item in ITEMS.items()}
        examples = [replace(e, items=tuple(items[item.names[0]] for item in e.items)) for e in EXAMPLES]
        of = models.resolve(str(checkpoint))
        variant = variants.parse(HEARING, "test")
        return adapters.folder_of(model, of, variant, training.TrainingSet("rich", tuple(examples)), 0)

    assert folder() == folder(place="elsewhere.yaml:3") == folder(paraphrased=("Which colour?",))
    assert folder() != folder(relation="age")
    assert folder() != folder(output="grey")


def test_an_unmeasured_divergence_is_no_zero():
    """A damaged memory still acts where a name stands, so only a measured zero is one by construction."""
    variant = {"name": "x", "config": {"kind": "engram-hearing"}}
    assert scorecard._kl(variant, None) is None
    assert scorecard._kl(variant, 0.0) == {"mean": 0.0, "by_construction": True}
    assert scorecard._kl(variant, 0.001) == {"mean": 0.001, "by_construction": False}
