"""The demo on a tiny model: what is on the screen, plain where it is piped, and a recording that plays back."""

import io
import json

import pytest
from rich.console import Console

from engram_bench import cli, demo
from engram_bench.bench import Bench
from engram_bench.options import settle
from tests.conftest import ENGRAM, LORA, PATTERNS


@pytest.fixture(scope="module")
def stage(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    given = {"engram_model": str(checkpoint), "engram_backend": "cpu", "engram_patterns": str(folder / "patterns")}
    (folder / "patterns").mkdir()
    (folder / "patterns" / "facts.yaml").write_text(PATTERNS.replace("name: colours", "name: facts"))
    for name, text in (("lora", LORA), ("engram", ENGRAM)):
        (folder / f"{name}.yaml").write_text(text.replace(f"name: tiny-{name}", f"name: {name}"))
    given["engram_variants"] = f"{folder / 'lora.yaml'},{folder / 'engram.yaml'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGRAM_BENCH_CACHE", str(folder / "cache"))
        made = Bench(settle(given, lambda _: ""), lambda *_: None, lambda _: None)
        assert not made.is_trained("engram")
        for name in demo.VARIANTS:
            made.adapter(name)
        assert made.is_trained("engram")
        yield made


@pytest.fixture
def screen():
    return Console(file=io.StringIO(), width=80)


def test_every_scene_is_answered_by_every_variant_and_told_right_or_wrong(stage, screen):
    shown = demo.scenes(stage.settings.patterns, seed=0, quick=True)
    assert [scene.item is None for scene in shown] == [False, True], "there are no random pairs in these patterns"
    pauses = []
    demo.show(stage, screen, shown, lambda: pauses.append(1))
    told = screen.file.getvalue()
    assert len(pauses) == len(shown) + 1
    assert "\x1b" not in told, "no colour where it is piped"
    assert max(map(len, told.splitlines())) <= 80
    for text in (shown[0].prompt, shown[0].item.output, "✓ right", "unchanged", "gate 0.", "silent", "engram-bench"):
        assert text in told, text
    summary = next(line for line in told.splitlines() if "engram" in line and "1 of 1" in line)
    assert summary


def test_another_seed_shows_another_item_and_the_same_seed_the_same(stage):
    first, again, other = (demo.scenes(stage.settings.patterns, seed, quick=False) for seed in (0, 0, 3))
    assert first == again != other


def test_a_streamed_answer_is_the_decoded_one(stage):
    prompts = [stage.backend.encoder.prompt(e.prompt) for e in stage.settings.patterns.training_examples()[:6]]
    for name in demo.VARIANTS:
        with stage.backend.attached(stage.adapter(name)):
            whole = stage.backend.generate(prompts, 8)
            assert [list(stage.backend.stream(prompt, 8)) for prompt in prompts] == whole
            assert len(list(stage.backend.stream(prompts[0], 8, ignore_eos=True))) == 8


def test_what_the_memory_found_ends_in_the_key(stage):
    adapter, encoder = stage.adapter("engram"), stage.backend.encoder
    example = stage.settings.patterns.training_examples()[0]
    key = example.prompt[slice(*example.key)]
    for ids in adapter.addresses.found(encoder.prompt(f"Well, {key}, please"), encoder.eos_id):
        assert key.endswith(encoder.decode([i for i in ids if i != encoder.eos_id]).strip())
    assert adapter.addresses.found(encoder.prompt("nothing of the kind"), encoder.eos_id) == []


def test_typed_prompts_are_answered_until_an_empty_line_or_an_interrupt(stage, screen, monkeypatch):
    for ending in ("", KeyboardInterrupt(), EOFError()):
        typed = iter(["KEY:abc", ending])

        def ask(*_, typed=typed):
            said = next(typed)
            if isinstance(said, BaseException):
                raise said
            return said

        monkeypatch.setattr(screen, "input", ask)
        demo.interact(stage, screen)
    assert screen.file.getvalue().count("prompt  KEY:abc") == 3


def test_a_recording_plays_back_as_what_was_written(tmp_path):
    with demo.recorded(tmp_path / "demo.cast", 90, 30) as stream:
        console = Console(file=stream, width=90, force_terminal=True)
        console.print("[red]one")
        console.print("two")
    header, *events = [json.loads(line) for line in (tmp_path / "demo.cast").read_text().splitlines()]
    assert (header["version"], header["width"], header["height"]) == (2, 90, 30)
    assert [event[0] for event in events] == sorted(event[0] for event in events)
    assert {event[1] for event in events} == {"o"}
    assert "".join(event[2] for event in events) == "\x1b[31mone\x1b[0m\r\ntwo\r\n"


def test_a_recording_that_cannot_be_written_is_one_line(tmp_path, capsys):
    assert cli.main(["demo", "--record", str(tmp_path / "no" / "demo.cast")]) == 2
    assert "--record" in capsys.readouterr().err
