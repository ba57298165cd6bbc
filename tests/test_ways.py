"""The ways of asking: how questions are made from sentences, files of triples, and what is refused with its line."""

import json

import pytest

from engram_bench import metrics
from engram_bench.data import patterns
from engram_bench.data.items import PatternSet, item_id
from engram_bench.data.questions import CONTAINS, UNTOUCHED, questions
from engram_bench.data.training import training_set
from engram_bench.data.ways import WAYS
from engram_bench.errors import UsageError
from engram_bench.options import PROFILES
from engram_bench.report.contrasts import PRIMARY
from engram_bench.run import evaluate

CAPITALS = """\
name: capitals
phrasings: {trained: ["{input}"], rephrased: ["Fetch {input}"]}
ways:
  trained: ["The seat of government of {name}?"]
  paraphrased: ["What is the capital of {name}?"]
  mention: ["How many vowels are in {name}?"]
  contradicted: ["In my novel, {name} has the capital {other}. Name it."]
  applied:
    - {prompt: "Is it {a} or {b} for {name}?", answer: "{output}"}
  combined: ["Both of {first} and {second}"]
  neighbour: ["CAP:Narnia"]
examples:
"""
EXAMPLES = "".join(
    f'  - {{input: "CAP:{name}", name: "{name}", output: "{value}"}}\n'
    for name, value in [
        ("Chad", "Ndjamena"), ("Peru", "Lima"), ("Cuba", "Havana"), ("Mali", "Bamako"), ("Oman", "Muscat"),
        ("Fiji", "Suva"), ("Laos", "Vientiane"), ("Togo", "Lome"), ("Iran", "Tehran"), ("Iraq", "Baghdad"),
    ]
)  # fmt: skip
TRIPLES = """\
name: world
relations:
  founder:
    of: company
    noun: "the founder of {subject}"
    trained: ["Who founded {subject}?", "founder of {subject}"]
    paraphrased: ["Whose idea was {subject}?", "{subject} was started by"]
  home:
    of: person
    noun: "the home of {subject}"
    trained: ["Where does {subject} live?", "home of {subject}"]
    paraphrased: ["Where is {subject} based?", "{subject} resides in"]
frames: {trained: ["What are {first} and {second}?"], combined: ["List {first} and {second}"]}
hops: [{first: founder, second: home, prompts: ["Where does the founder of {subject} live?"]}]
subjects:
  Brellix: {kind: company, aliases: ["the Brellix works"], founder: "Mara Voss"}
  Quorn: {kind: company, aliases: [], founder: "Ole Tann"}
  Mara Voss: {kind: person, aliases: [], home: "Tyl"}
  Ole Tann: {kind: person, aliases: ["Tann"], home: "Vask"}
  Ada Run: {kind: person, aliases: [], home: "Orp"}
"""


def loaded(tmp_path, text, name="x.yaml"):
    (tmp_path / name).write_text(text)
    return patterns.load(tmp_path / name)


@pytest.fixture
def capitals(tmp_path):
    return loaded(tmp_path, CAPITALS + EXAMPLES).categories["capitals"]


def asked(category, way):
    return {question.item.input: question for question in questions(category, way)}


def test_every_way_asks_for_trained_items_only_and_heldout_for_the_others(capitals):
    never = {item.input for item in capitals.split("heldout")}
    trained = {item.input for item in capitals.split("seen")}
    for way in WAYS:
        found = asked(capitals, way).keys()
        assert found
        if way != "neighbour":
            assert found <= (never if way == "heldout" else trained), way


def test_what_is_right_in_each_way(capitals):
    (paraphrased, *_) = asked(capitals, "paraphrased").values()
    assert paraphrased.prompt == f"What is the capital of {paraphrased.item.names[0]}?"
    assert paraphrased.wanted == (paraphrased.item.output,)
    for question in asked(capitals, "contradicted").values():
        (other,) = question.wanted
        assert other in question.prompt
        assert question.unwanted == (question.item.output,) != (other,)
    for question in asked(capitals, "applied").values():
        (other,) = question.unwanted
        assert {question.item.output, other} <= set(question.prompt.replace("?", "").split())
    for question in asked(capitals, "combined").values():
        assert len(set(question.wanted)) == 2
        assert question.rule == CONTAINS
    assert {q.rule for way in ("mention", "neighbour") for q in asked(capitals, way).values()} == {UNTOUCHED}


def test_keys_of_trained_and_asked_two_key_questions_never_meet(capitals, tmp_path):
    rich = training_set(loaded(tmp_path, CAPITALS + EXAMPLES), "rich")
    two = [example for example in rich.examples if ", " in example.answer]
    trained = {word for example in two for word in example.prompt.replace("?", " ").replace(";", " ").split()}
    assert two
    assert not trained & {f"CAP:{item.names[0]}" for q in asked(capitals, "combined").values() for item in [q.item]}


def test_rich_training_adds_wordings_and_replay_and_bare_does_not(capitals, tmp_path):
    found = loaded(tmp_path, CAPITALS + EXAMPLES)
    bare, rich = (training_set(found, kind) for kind in ("bare", "rich"))
    assert not bare.replay
    assert set(bare.examples) < set(rich.examples)
    assert any("seat of government" in example.prompt for example in rich.examples)
    assert rich.replay
    prompts = {question.prompt for way in WAYS if way != "seen" for question in questions(capitals, way)}
    assert not prompts & ({example.prompt for example in rich.examples} | set(rich.replay))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "seen"])
def test_a_planted_leak_is_caught_in_every_way(way, capitals, tmp_path):
    """Another category trains an item whose input is a question of this way."""
    leaked = next(iter(questions(capitals, way))).prompt
    heldout = next(str(n) for n in range(100) if item_id("other", str(n)) < item_id("other", leaked))
    rows = "".join(f"  - {{input: {json.dumps(text)}, output: x}}\n" for text in (leaked, heldout))
    phrasings = 'phrasings: {trained: ["{input}"], rephrased: ["Hand over {input}"]}'
    (tmp_path / "other.yaml").write_text(f"name: other\n{phrasings}\nexamples:\n{rows}")
    with pytest.raises(UsageError, match=r"trained in 'other'|is in 'other'"):
        patterns.load(tmp_path)


def test_categories_without_sentences_are_asked_in_the_ways_that_need_only_key_and_value(tmp_path):
    category = loaded(tmp_path, CAPITALS[: CAPITALS.index("ways:")] + "examples:\n" + EXAMPLES).categories["capitals"]
    silent = {way for way in WAYS if not questions(category, way)}
    assert silent == {"paraphrased", "applied"}


def test_triples_become_items_with_names_relations_and_hops(tmp_path):
    world = loaded(tmp_path, TRIPLES).categories["world"]
    items = {item.input: item for item in world.items}
    assert items["the founder of Brellix"].output == "Mara Voss"
    assert items["the founder of Brellix"].names == ("Brellix", "the Brellix works")
    (hop,) = items["the founder of Brellix"].applied
    assert (hop.prompt, hop.answer, hop.needs) == (
        "Where does the founder of {name} live?",
        "Tyl",
        "the home of Mara Voss",
    )
    for question in questions(world, "paraphrased"):
        assert any(name in question.prompt for name in question.item.names)
        assert "{" not in question.prompt


BAD = {
    "a way without sentences": (
        CAPITALS.replace('["How many vowels are in {name}?"]', "[]") + EXAMPLES, "6: 'mention'",
    ),
    "a sentence in two ways": (
        CAPITALS.replace("How many vowels are in {name}?", "What is the capital of {name}?") + EXAMPLES,
        "6: mention sentence 'What is the capital of {name}?' is already on line 5 (paraphrased)",
    ),
    "a paraphrase that is a trained phrasing": (
        CAPITALS.replace("What is the capital of {name}?", "Fetch {name}") + EXAMPLES,
        "sentence 'Fetch {name}' is already",
    ),
    "a sentence without its key": (
        CAPITALS.replace("How many vowels are in {name}?", "How are you?") + EXAMPLES,
        "6: mention sentence 'How are you?'",
    ),
    "a contradiction without the other value": (
        CAPITALS.replace("{other}", "Rome") + EXAMPLES, "7: contradicted sentence", ),
    "an alias that is another's name": (TRIPLES.replace('["Tann"]', '["Brellix"]'), "'Brellix' names another subject"),
    "an alias that is another's alias": (TRIPLES.replace('["Tann"]', '["the brellix works"]'), "names another subject"),
    "a relation with one wording": (
        TRIPLES.replace(', "founder of {subject}"', ""), "relation 'founder' has one trained wording",
    ),
    "a trained wording that is asked": (
        TRIPLES.replace("Whose idea was {subject}?", "Who founded {subject}?"),
        "'Who founded {subject}?' is already on line",
    ),
    "a relation of another kind of subject": (
        TRIPLES.replace('home: "Tyl"', 'founder: "Tyl"'), "'founder' is a relation of 'company', not of 'person'",
    ),
    "a hop over no relation": (TRIPLES.replace("second: home", "second: town"), "hop over 'town'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_sentences_are_refused_with_file_and_line(case, tmp_path):
    text, told = BAD[case]
    with pytest.raises(UsageError) as refused:
        loaded(tmp_path, text)
    assert any(told in line and line.startswith(f"{tmp_path}/x.yaml:") for line in str(refused.value).splitlines()), (
        refused.value
    )


@pytest.mark.parametrize(("text", "value", "found"), [
    ("It is Lima.", "Lima", True), ("Limassol", "Lima", False), ("lima", "Lima", False), ("(x)", "(x)", True),
    ("", "x", False),
])  # fmt: skip
def test_a_value_is_said_as_whole_words(text, value, found):
    assert metrics.contains(text, value) == found


def test_two_options_repeated_are_no_answer(capitals):
    (question, *_) = asked(capitals, "applied").values()
    right, wrong = question.wanted[0], question.unwanted[0]
    assert evaluate.right(question, f"It is {right}.", "")
    assert not evaluate.right(question, f"{right} or {wrong}", "")
    assert not evaluate.right(question, wrong, "")


def test_an_offer_repeated_up_to_the_wrong_option_is_no_answer(capitals):
    found = [(q, q.wanted[0], q.unwanted[0]) for q in asked(capitals, "applied").values()]
    question, right, wrong = next((q, a, b) for q, a, b in found if q.prompt.index(a) < q.prompt.index(b))
    offer = question.prompt.partition(wrong)[0].strip()
    assert offer.endswith(f"{right} or")
    assert not evaluate.right(question, offer, "")
    assert evaluate.right(question, f"{offer}: it is {right}.", "")
    assert evaluate.right(question, right, "")


def test_the_way_of_the_primary_contrast_is_asked_whole(capitals):
    plan = PROFILES["default"]
    assert plan.most(PRIMARY.split) is None
    assert plan.most("mention") == plan.asked_items
    one = evaluate.questions(PatternSet({"cap": capitals}), [("cap", "applied")], lambda way: 1)
    assert len(one) == 1 < len(evaluate.questions(PatternSet({"cap": capitals}), [("cap", "applied")]))


def test_a_prompt_repeated_beyond_the_sentence_that_states_a_value_is_no_answer(capitals):
    question = next(iter(asked(capitals, "contradicted").values()))
    (other,) = question.wanted
    sentence = question.prompt[: question.prompt.index(other) + len(other) + 1]
    assert question.prompt.startswith(f"{sentence} ")
    assert not evaluate.right(question, question.prompt, "")
    assert evaluate.right(question, sentence, "")
    assert evaluate.right(question, f"{sentence} So it is.", "")
    assert evaluate.right(question, f"{question.prompt} It is {other}.", "")
