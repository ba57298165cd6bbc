"""The demo on a tiny model: the text on screen, plain text in a pipe, and recordings that play back."""

import io
import json
import re
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from rich.console import Console

from engram_bench import cli, demo
from engram_bench.data.training import training_set
from engram_bench.options import settle
from engram_bench.run.bench import Bench
from tests.conftest import ENGRAM, LORA, PATTERNS


@pytest.fixture(scope="module")
def stage(all_in_float32, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    given = {"engram_model": str(checkpoint), "engram_backend": "cpu", "engram_patterns": str(folder / "patterns")}
    (folder / "patterns").mkdir()
    (folder / "patterns" / "facts.yaml").write_text(PATTERNS.replace("name: colours", "name: facts"))
    for name, text in (("lora", LORA), ("engram-keyed", ENGRAM)):
        (folder / f"{name}.yaml").write_text(re.sub("name: tiny-.*", f"name: {name}", text))
    given["engram_variants"] = f"{folder / 'lora.yaml'},{folder / 'engram-keyed.yaml'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGRAM_BENCH_CACHE", str(folder / "cache"))
        made = Bench(settle(given, lambda _: ""), lambda *_: None)
        engram = made.variant("engram-keyed")
        assert not made.adapters.is_cached(engram, 0)
        for name in demo.VARIANTS:
            made.adapter(name)
        assert made.adapters.is_cached(engram, 0)
        yield made


@pytest.fixture
def screen():
    return Console(file=io.StringIO(), width=80)


def test_every_scene_is_answered_by_every_variant_and_told_right_or_wrong(stage, screen):
    shown = demo.scenes(stage.settings.patterns, seed=0, quick=True)
    assert [scene.asks for scene in shown] == [True, False], "these patterns have facts alone"
    pauses = []
    demo.show(demo.Stage(stage), screen, shown, lambda: pauses.append(1))
    told = screen.file.getvalue()
    assert len(pauses) == len(shown) + 1
    assert "\x1b" not in told, "no colour where it is piped"
    assert max(map(len, told.splitlines())) <= 80
    notes = ("✓ right", "same by construction", "gate 0.", "no trained key", "engram-bench")
    for text in (shown[0].prompt, *shown[0].wanted, *notes):
        assert text in told, text
    assert "✓ unchanged" not in told, "what follows from the memory's definition gets no mark"
    summary = next(line for line in told.splitlines() if "engram-keyed" in line and "1 of 1" in line)
    assert "by construction" in summary


def test_another_seed_shows_another_item_and_the_same_seed_the_same(stage):
    first, again, other = (demo.scenes(stage.settings.patterns, seed, quick=False) for seed in (0, 0, 3))
    assert first == again != other


def test_answers_typed_side_by_side_are_the_decoded_ones(stage, screen):
    scene = next(scene for scene in demo.scenes(stage.settings.patterns, seed=0, quick=True) if scene.asks)
    prompt, takes = stage.backend.encoder.prompt(scene.prompt), demo.play(demo.Stage(stage), screen, scene)
    for name, take in takes.items():
        with stage.backend.attached(stage.adapter(name)):
            (whole,) = stage.backend.generate([prompt], demo.LONGEST)
        assert (take.text, take.tokens) == (stage.backend.encoder.decode(whole), len(whole))
    assert len({take.text for take in takes.values()}) == 3


def test_a_streamed_answer_is_the_decoded_one(stage):
    prompts = [stage.backend.encoder.prompt(e.prompt) for e in stage.settings.patterns.training_examples()[:6]]
    for name in demo.VARIANTS:
        with stage.backend.attached(stage.adapter(name)):
            whole = stage.backend.generate(prompts, 8)
            assert [list(stage.backend.stream(prompt, 8)) for prompt in prompts] == whole
            assert len(list(stage.backend.stream(prompts[0], 8, ignore_eos=True))) == 8


def test_what_the_memory_found_ends_in_the_key(stage):
    adapter, encoder = stage.adapter("engram-keyed"), stage.backend.encoder
    example = stage.settings.patterns.training_examples()[0]
    key = example.prompt[slice(*example.key)]
    found = adapter.found(encoder.prompt(f"Well, {key}, please"))
    texts = [encoder.decode([i for i in ids if i != encoder.eos_id]).strip() for ids in found]
    assert all(key.endswith(text) for text in texts)
    wide = Console(file=io.StringIO(), width=300)
    demo.play(demo.Stage(stage), wide, demo.Scene("", f"Well, {key}, please"))
    assert f"{len(texts)} n-grams found: {texts[0]!r} to {texts[-1]!r}" in wide.file.getvalue()
    with stage.backend.attached(adapter):
        next(stage.backend.stream(encoder.prompt(f"Well, {key}, please"), 8))
        gates = " ".join(f"{gate:.2f}" for gate in adapter.gates())
    assert f"gate {gates}" in wide.file.getvalue(), "of the first token of the answer"
    assert adapter.found(encoder.prompt("nothing of the kind")) == []


class Silent(str):
    """An adapter that looks up no n-grams, by its name."""

    def found(self, prompt):
        return None


class Scripted:
    """A bench whose variants say, a letter a token, what they are told to."""

    def __init__(self, **answers):
        self.answers, self.on = answers, None
        self.backend = self.encoder = self.adapters = self

    def load_model(self):
        return Scripted(**self.answers)

    def variant(self, name):
        return name

    def is_cached(self, variant, seed):
        return variant != "lora"

    def adapter(self, name):
        return Silent(name)

    def prompt(self, text):
        return text

    def answer(self, text):
        return (*map(ord, text), 0)

    def decode(self, ids):
        return "".join(map(chr, ids))

    @contextmanager
    def attached(self, name):
        self.on = name
        try:
            yield
        finally:
            self.on = None

    def stream(self, prompt, longest):
        for letter in self.answers[self.on][:longest]:
            if letter == "!":
                raise KeyboardInterrupt
            yield ord(letter)


ASKED = demo.Scene("asked", "what?", ("yes",))
TWO = demo.Scene("two", "what and who?", ("yes", "me"))
NAMED = demo.Scene("named", "Spell it backwards", (), ("yes",))
UNRELATED = demo.Scene("unrelated", "hello")


def test_right_wrong_changed_and_unchanged_are_told_apart_and_counted(screen):
    demo.show(
        demo.Stage(Scripted(**{"baseline": "no", "lora": "yes", "engram-keyed": "no"})),
        screen,
        [ASKED, UNRELATED],
        lambda: None,
    )
    told = screen.file.getvalue()
    asked, unrelated, summary = re.split("asked ─|unrelated ─|Summary ─", told)[1:]
    assert [word for word in re.findall(r"right|wrong", asked) if "answers" not in word] == ["wrong", "right", "wrong"]
    assert re.findall(r"untouched|unchanged|changed", unrelated) == ["untouched", "changed", "unchanged"]
    rows = [re.sub(r"[│\s]+", " ", line).split() for line in summary.splitlines() if "of 1" in line]
    assert [" ".join(row[:-1]) for row in rows] == [
        "baseline 0 of 1 by construction 4",
        "lora 1 of 1 0 of 1 6",
        "engram-keyed 0 of 1 1 of 1 4",
    ]
    assert " ".join(demo.CAVEAT.split()) in " ".join(summary.split())


def test_two_values_are_right_in_any_words_and_one_of_them_is_wrong(screen):
    answers = {"baseline": "yes, it is me", "lora": "yes, it is", "engram-keyed": "yes"}
    demo.play(demo.Stage(Scripted(**answers)), screen, TWO)
    told = screen.file.getvalue()
    assert "wanted  yes and me" in told
    assert re.findall(r"✓ right|✗ wrong", told) == ["✓ right", "✗ wrong", "✗ wrong"]


def test_a_stored_value_that_nobody_asked_for_is_told(screen):
    demo.play(demo.Stage(Scripted(**{"baseline": "no", "lora": "yes", "engram-keyed": "no"})), screen, NAMED)
    told = screen.file.getvalue()
    assert "wanted  the baseline's answer" in told
    assert re.findall(r"untouched|✓ unchanged|✗ [\w ]*\w", told) == ["untouched", "✗ recites the value", "✓ unchanged"]
    assert not NAMED.recites("yes", baseline="yes, of course"), "the untouched model says it, too"


def test_on_a_terminal_all_answers_are_typed_at_once_token_by_token():
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True)
    demo.play(demo.Stage(Scripted(**{"baseline": "no", "lora": "yes", "engram-keyed": "abc"})), terminal, ASKED)
    typed = re.findall(r"(\w*)▌", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.file.getvalue()))
    grown = list(dict.fromkeys(filter(None, typed)))
    assert grown == ["n", "y", "a", "no", "ye", "ab", "yes", "abc"], "side by side"


def test_answers_are_cut_but_never_below_a_right_one():
    long = demo.Scene("long", "what?", ("y" * 40,))
    lengths = {}
    for scene in (UNRELATED, NAMED, ASKED, long):
        quiet = Console(file=io.StringIO(), width=80)
        takes = demo.play(demo.Stage(Scripted(**dict.fromkeys(demo.VARIANTS, "x" * 99))), quiet, scene)
        (lengths[scene.title],) = {take.tokens for take in takes.values()}
    assert lengths == {"unrelated": 12, "named": 12, "asked": 16, "long": 41}


def test_nothing_that_is_asked_or_answered_steers_the_terminal(screen):
    odd = "\x1b[31m[b]z"
    asked = demo.Scene("odd", odd, (odd,))
    demo.play(demo.Stage(Scripted(**dict.fromkeys(demo.VARIANTS, odd))), screen, asked)
    told = screen.file.getvalue()
    assert "\x1b" not in told
    assert told.count("·[31m[b]z") == 5


def test_six_scenes_are_quick_and_eleven_are_all():
    shipped = settle({"engram_profile": "quick"}, lambda _: "").patterns
    whole, quick = (demo.scenes(shipped, seed=0, quick=quick) for quick in (False, True))
    assert [scene.title for scene in whole] == [title for title, _, _ in demo.SCENES]
    assert whole[:6] == quick
    assert [way for _, _, way in demo.SCENES[:6]] == [
        "rephrased", "rephrased", "paraphrased", "combined", "mention", "control",
    ]  # fmt: skip
    phrasings = {example.prompt for example in training_set(shipped, "rich").examples}
    assert phrasings.isdisjoint(scene.prompt for scene in whole)


def test_each_scene_asks_about_a_trained_item_in_its_way():
    shipped = settle({"engram_profile": "quick"}, lambda _: "").patterns
    keys = {name: [i.input for i in c.split("seen")] for name, c in shipped.categories.items()}
    for seed in range(5):
        for scene, (_, category, way) in zip(demo.scenes(shipped, seed, quick=False), demo.SCENES, strict=True):
            named = [key for key in keys.get(category, ()) if key in scene.prompt]
            assert len(named) == {"paraphrased": 0, "combined": 2, "control": 0}.get(way, 1), scene
            assert len(scene.wanted) == {"combined": 2, "mention": 0, "control": 0}.get(way, 1), scene
            assert bool(scene.unwanted) == (way == "mention"), scene


def test_the_title_is_two_lines_at_the_narrowest(screen):
    demo.show(demo.Stage(Scripted()), screen, [], lambda: None)
    assert all(any(line in shown for shown in screen.file.getvalue().splitlines()) for line in demo.ABOUT.splitlines())
    assert len(demo.ABOUT.splitlines()) == 2


def test_an_interrupt_while_answers_are_typed_ends_and_leaves_the_model_and_the_terminal_as_they_were(monkeypatch):
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True)
    monkeypatch.setattr(terminal, "input", lambda *_: "hello")
    stage = demo.Stage(Scripted(**{"baseline": "no", "lora": "y!", "engram-keyed": "no"}))
    demo.interact(stage, terminal)
    assert [backend.on for backend in stage.backends.values()] == [None] * 3
    told = terminal.file.getvalue()
    assert told.rfind("\x1b[?25h") > told.rfind("\x1b[?25l") > 0, "the cursor is shown again"


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(
        "engram_bench.run.bench.Bench", lambda *_: Scripted(**{"baseline": "no", "lora": "yes", "engram-keyed": "yes"})
    )
    return lambda *options: cli.main(["demo", "--quick", "--profile", "quick", *options])


def test_the_command_is_plain_where_it_is_piped_and_says_what_it_trains(command, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert command("--interactive") == 0, "nothing is typed where there is no terminal"
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert "Type a prompt" in out
    assert "6/6" in out
    assert max(map(len, out.splitlines())) <= 80
    assert err.startswith("lora will be trained first")


def test_the_command_waits_between_scenes_unless_told_not_to(command, monkeypatch):
    waited = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda *_: waited.append(1))
    assert command("--no-pause") == 0
    assert waited == []
    assert command() == 0
    assert len(waited) == 7


@pytest.mark.parametrize(("ending", "code"), [(EOFError, 0), (KeyboardInterrupt, 130)])
def test_the_command_goes_on_at_the_end_of_input_and_stops_at_an_interrupt(command, monkeypatch, capsys, ending, code):
    def end(*_):
        raise ending

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", end)
    assert command() == code
    assert "Traceback" not in capsys.readouterr().err


def test_the_command_records_in_colour(command, tmp_path):
    assert command("--no-pause", "--record", str(tmp_path / "demo.cast")) == 0
    header, *events = [json.loads(line) for line in (tmp_path / "demo.cast").read_text().splitlines()]
    assert header["width"] >= 80
    assert "\x1b[31m✗ wrong" in "".join(text for _, _, text in events)


def test_typed_prompts_are_answered_until_an_empty_line_or_an_interrupt(stage, screen, monkeypatch):
    for ending in ("", KeyboardInterrupt(), EOFError()):
        typed = iter(["KEY:abc", ending])

        def ask(*_, typed=typed):
            said = next(typed)
            if isinstance(said, BaseException):
                raise said
            return said

        monkeypatch.setattr(screen, "input", ask)
        demo.interact(demo.Stage(stage), screen)
    assert screen.file.getvalue().count("prompt  KEY:abc") == 3


def test_a_recording_plays_back_as_what_was_written(tmp_path, monkeypatch):
    clock = iter([5.0, 5.5, 7.25])
    monkeypatch.setattr(demo, "time", SimpleNamespace(time=lambda: 1e9, monotonic=lambda: next(clock)))
    with demo.recorded(tmp_path / "demo.cast", 90, 30) as stream:
        console = Console(file=stream, width=90, force_terminal=True)
        console.print("[red]one")
        console.print("two")
    header, *events = [json.loads(line) for line in (tmp_path / "demo.cast").read_text().splitlines()]
    assert header == {"version": 2, "width": 90, "height": 30, "timestamp": 1_000_000_000}
    assert [event[:2] for event in events] == [[0.5, "o"], [2.25, "o"]]
    assert "".join(event[2] for event in events) == "\x1b[31mone\x1b[0m\r\ntwo\r\n"


def test_a_recording_that_cannot_be_written_is_one_line(tmp_path, capsys):
    assert cli.main(["demo", "--record", str(tmp_path / "no" / "demo.cast")]) == 2
    assert "--record" in capsys.readouterr().err
