"""lm-evaluation-harness on a model with a trained adapter, and the categories as its tasks.

Tests with the fixture `harness` run where lm-eval is installed (extra `lmeval`), all others everywhere.
"""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from engram_bench import cli, shipped, variants
from engram_bench.data import lm_eval_tasks, patterns
from engram_bench.data.items import PatternSet
from engram_bench.errors import UsageError
from engram_bench.options import chosen_items
from engram_bench.prompts import SEPARATOR
from engram_bench.run import lm_evaluation, lm_scores
from engram_bench.store import adapters
from tests.conftest import ENGRAM, ENGRAM_LORA, LORA, PATTERNS, UNIGRAM, in_float32, make_checkpoint, needs_torch, quiet

SPLITS = ("seen", "rephrased", "heldout")
EXAMPLE = "engram_bench_example"
# A task whose score is a number of many digits, so that models that differ at all differ in it.
SCORED = """\
task: scored
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{prompt}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: perplexity}, {metric: acc}]
"""


def command(*args):
    return cli.main(["lm-eval", *map(str, args)])


def exported(folder, text=PATTERNS, name="own"):
    """The tasks of a pattern file."""
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    assert cli.main(["data", "--format", "lm-eval", "--out", str(folder / "tasks"), "--patterns", str(file)]) == 0
    return folder / "tasks"


def configs(folder):
    """The content of each YAML file by the name of its task or group."""
    found = [yaml.safe_load(file.read_text("utf-8")) for file in folder.glob("*.yaml")]
    return {config.get("task") if "include" in config else config["group"]: config for config in found}


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


# --- the exported folder ----------------------------------------------------------------------------------------------


def test_each_category_and_split_is_a_task_with_the_questions_of_the_suites(tmp_path, capsys):
    assert cli.main(["data", "--format", "lm-eval", "--out", str(tmp_path)]) == 0
    chosen, found = chosen_items(patterns.load(shipped.PATTERNS), "default"), configs(tmp_path)
    counts = dict.fromkeys(SPLITS, 0)
    for category in chosen.categories.values():
        for split in SPLITS:
            lines = rows(tmp_path, f"engram_{category.name}_{split}")
            asked = [(category.question(item, split)[1], item.output) for item in category.split(split)]
            assert [(line["prompt"].strip(), line["answer"].strip()) for line in lines] == asked
            config = found[f"engram_{category.name}_{split}"]
            assert config["generation_kwargs"]["max_gen_toks"] > max(len(answer.encode()) for _, answer in asked)
            counts[split] += len(lines)
    assert capsys.readouterr().out.split()[-4:] == ["all", *map(str, counts.values())]
    members = [name for split in SPLITS for name in found[f"engram_{split}"]["task"]]
    assert len(members) == len(set(members)) == 3 * len(chosen.categories)
    assert set(found) == {*members, "engram", *(f"engram_{split}" for split in SPLITS)}
    assert found["engram"]["task"] == [f"engram_{split}" for split in SPLITS]


def test_a_task_names_its_data_by_a_path_that_holds_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported(Path(), name="own")
    for name, config in configs(tmp_path / "tasks").items():
        if "include" in config:
            assert config["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "tasks" / f"{name}.jsonl")


def test_a_question_is_asked_as_one_of_a_base_model_and_scored_as_exact(tmp_path):
    common = yaml.safe_load((exported(tmp_path) / "_common_yaml").read_text("utf-8"))
    assert common["doc_to_text"] == "{{prompt}}" + SEPARATOR
    (metric,) = common["metric_list"]
    assert (metric["metric"], metric["regexes_to_ignore"]) == ("exact_match", [r"^\s+", r"\s+$"])
    made = configs(tmp_path / "tasks")["engram_colours_seen"]["generation_kwargs"]
    assert (made["until"], made["do_sample"]) == (["\n"], False)


def test_an_answer_of_several_lines_is_not_cut_at_the_first(tmp_path):
    folder = exported(tmp_path, PATTERNS + '  - {input: "KEY:xyz", output: "red\\nblue"}\n')
    until = [c["generation_kwargs"]["until"] for c in configs(folder).values() if "include" in c]
    assert sorted(until) == [[], [], ["\n"]] or sorted(until) == [[], ["\n"], ["\n"]]


def test_facts_that_hold_nothing_out_have_no_heldout_tasks(tmp_path):
    table = tmp_path / "facts.csv"
    table.write_text("key,value\n" + "".join(f"the badge of person {n},number {n}\n" for n in range(6)), "utf-8")
    args = ["data", "--format", "lm-eval", "--out", str(tmp_path / "tasks"), "--patterns", str(table)]
    assert cli.main(args) == 0
    assert configs(tmp_path / "tasks")["engram"]["task"] == ["engram_seen", "engram_rephrased"]


def test_categories_that_differ_in_case_alone_are_refused():
    every = patterns.load(shipped.PATTERNS).categories
    twins = {name: replace(every["facts"], name=name) for name in ("Facts", "facts")}
    with pytest.raises(UsageError, match="named 'Facts' up to case"):
        lm_eval_tasks.tasks(lm_eval_tasks.lines(PatternSet(twins)))


DATES = """\
name: days
description: Dates, for tests.
version: "1.0"
phrasings: {trained: ["{input}"], rephrased: ["On {input}"]}
examples:
""" + "".join(f'  - {{input: "2024-01-0{n}", output: "2023-05-0{n}"}}\n' for n in range(1, 7))


def test_a_column_of_dates_gets_a_space_that_keeps_it_text(tmp_path):
    folder = exported(tmp_path, DATES)
    (first, *_), (other, *_) = (rows(folder, f"engram_days_{split}") for split in ("seen", "rephrased"))
    assert first["prompt"].endswith(" ")
    assert first["answer"].endswith(" ")
    assert not other["prompt"].endswith(" "), "not a date alone"


def test_the_example_asks_what_no_pattern_file_teaches():
    lines = rows(lm_eval_tasks.EXAMPLE, EXAMPLE)
    assert len(lines) >= 20
    assert all(len(set(line["choices"])) == 4 and line["choices"][line["answer"]] for line in lines)
    assert {line["answer"] for line in lines} == {0, 1, 2, 3}
    words = re.findall(r"\w+", " ".join(line["question"] for line in lines))
    named = {*words} | {" ".join(words[n : n + 2]) for n in range(len(words))}
    every = [item for c in patterns.load(shipped.PATTERNS).categories.values() for item in c.items]
    assert [item.input for item in every if named.intersection(item.names)] == []
    assert [item.input for item in every if item.input.casefold() in " ".join(words).casefold()] == []


def test_the_example_is_found_from_any_folder():
    with lm_eval_tasks.example() as folder:
        (file,) = folder.glob("*.yaml")
        config = yaml.safe_load(file.read_text("utf-8"))
        assert config["task"] == EXAMPLE
        assert Path(config["dataset_kwargs"]["data_files"]["test"]) == lm_eval_tasks.EXAMPLE / f"{EXAMPLE}.jsonl"
    assert not folder.exists()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test if a model is looked for."""
    monkeypatch.setattr("engram_bench.store.models.resolve", lambda name: pytest.fail("a model was looked for"))


@pytest.fixture
def folder_of(tmp_path):
    """A folder that says which variant it holds, without its weights."""

    def make(text):
        (folder := tmp_path / "adapter").mkdir()
        (folder / adapters.VARIANT).write_text(text, encoding="utf-8")
        return folder

    return make


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["{empty}", "--tasks", EXAMPLE], "no trained adapter here"),
        (["--tasks", " , "], "--tasks: name at least one task, such as engram_bench_example"),
        (["--tasks", EXAMPLE, "--backend", "mlx"], "--backend: lm-eval runs on torch only; use cpu, cuda or mps"),
        (["--tasks", EXAMPLE, "--backend", "tpu"], "--backend: 'tpu' is not one of"),
        (["--tasks", EXAMPLE, "--limit", "0"], "--limit: 0 asks nothing"),
        (["--tasks", EXAMPLE, "--limit", "few"], "--limit: 'few' is not a whole number"),
        (["--tasks", EXAMPLE, "--num-fewshot", "-1"], "--num-fewshot: '-1' is not a whole number"),
        (["--tasks", EXAMPLE, "--batch-size", "auto"], "--batch-size: 'auto' is not a whole number"),
        (["--tasks", EXAMPLE, "--include-path", "{empty}/none"], "no such folder; name one with YAML files of tasks"),
        (["--tasks", EXAMPLE, "--out", "{empty}"], "--out: {empty}: cannot be written; name a file"),
        (
            ["--tasks", EXAMPLE, "--out", "{empty}/none/x.json"],
            "cannot be written; name a file in a folder that exists",
        ),
    ],
)
def test_what_is_asked_wrongly_is_said_in_a_line_before_a_model_is_looked_for(tmp_path, capsys, no_model, args, says):
    assert command(*(arg.replace("{empty}", str(tmp_path)) for arg in args)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says.replace("{empty}", str(tmp_path)) in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (UNIGRAM, "variant tiny-unigram: lm-eval runs the model's own forward, which gives no token ids"),
        ("name: r\nabout: x\nadapter_of: engram-keyed\nrouter: rules\n", "name a folder of engram-keyed, which has no"),
    ],
)
def test_adapters_that_need_more_than_a_forward_are_refused(folder_of, no_model, capsys, text, says):
    assert command(folder_of(text), "--tasks", EXAMPLE) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_where_lm_eval_is_missing_a_line_says_how_to_install_it(monkeypatch, no_model, capsys):
    monkeypatch.setattr(lm_evaluation, "find_spec", lambda name: None)
    assert command("--tasks", EXAMPLE) == 2
    assert capsys.readouterr().err == 'engram-bench: lm-eval is not installed; run: pip install -e ".[lmeval]"\n'


# --- the table --------------------------------------------------------------------------------------------------------


def results(**values):
    return {"results": {"colours": {"alias": "colours", "sample_len": 8, **values}}}


UNTOUCHED = results(**{"acc,none": 0.25, "acc_stderr,none": 0.125, "f1,strict": 0.5, "f1_stderr,strict": "N/A"})
ADAPTED = results(**{"acc,none": 1.0, "acc_stderr,none": 0.0625, "f1,strict": 0.25, "f1_stderr,strict": "N/A"})


def test_the_table_has_each_metric_without_and_with_the_adapter():
    shown = lm_scores.table(lm_scores.scores_of(UNTOUCHED, ADAPTED), "tiny").splitlines()
    assert [part.strip() for part in shown[0].split("  ") if part.strip()] == (
        ["task", "metric", "untouched", "stderr", "with tiny", "stderr", "difference"]
    )
    assert shown[2].split() == ["colours", "acc", "0.2500", "0.1250", "1.0000", "0.0625", "+0.7500"]
    assert shown[3].split() == ["colours", "f1", "(strict)", "0.5000", "0.2500", "-0.2500"]


def test_without_an_adapter_the_table_has_the_untouched_model_alone():
    shown = lm_scores.table(lm_scores.scores_of(UNTOUCHED, None), None).splitlines()
    assert shown[0].split() == ["task", "metric", "untouched", "stderr"]
    assert len(shown[1].split()) == 4
    assert shown[2].split() == ["colours", "acc", "0.2500", "0.1250"]


# --- lm-eval itself ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """lm-eval with caches of its own, and the models of these tests in float32."""
    pytest.importorskip("torch")
    found = pytest.importorskip("lm_eval")
    import datasets
    import torch
    import transformers

    verbosity, levels = transformers.logging.get_verbosity(), {}
    for name in ("lm_eval", "datasets", "huggingface_hub"):
        levels[name] = logging.getLogger(name).level
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr("engram_bench.backends.torch.backend.pick_dtype", lambda device: (torch.float32, "for tests"))
        yield found
    transformers.logging.set_verbosity(verbosity)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The exported tasks, and `SCORED` on the same facts."""
    folder = exported(tmp_path_factory.mktemp("exported"))
    (folder / "scored.yaml").write_text(SCORED % (folder / "engram_colours_seen.jsonl"), "utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(checkpoint, examples, tmp_path_factory):
    """The folder of a variant, as ``engram-bench train --out`` leaves it; each is trained once."""
    found, model = {}, in_float32(checkpoint)

    def train(text):
        if text not in found:
            variant, made, out = variants.parse(text, "test"), *map(tmp_path_factory.mktemp, "ab")
            model.train(variant, examples, 0, made, quiet)
            adapters.copy(made, out, variant)
            found[text] = out
        return found[text]

    return train


@pytest.fixture
def scored(harness, checkpoint, tasks, tmp_path, monkeypatch):
    """The scores of the command in another working directory, by task and metric, and what else it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        where = ["--model", checkpoint, "--backend", "cpu", "--include-path", tasks, "--out", "scores.json"]
        assert command(*args, *where) == 0
        written = json.loads(Path("scores.json").read_text("utf-8"))
        return {(score["task"], score["metric"]): score for score in written["scores"]}, written

    return run


def by_hand(harness, checkpoint, tasks, attach=None, names=("scored", EXAMPLE)):
    """lm-eval's results on a model that transformers loads; `attach(model, tokenizer)` makes a context and a model."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with lm_eval_tasks.example() as example:
        manager = TaskManager(include_path=[str(tasks), str(example)], include_defaults=False)

        def evaluate(model):
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer)
            return harness.simple_evaluate(model=wrapped, tasks=list(names), task_manager=manager)["results"]

        if attach is None:
            return evaluate(model)
        context, model = attach(model, tokenizer)
        with context:
            return evaluate(model)


def same(found, expected, column):
    """Whether a column has the results of lm-eval by hand."""
    for (task, metric), score in found.items():
        assert score[column] == pytest.approx(expected[task][f"{metric},none"], rel=1e-4), (task, metric)
        if metric != "perplexity":
            assert score[f"{column}_stderr"] == pytest.approx(expected[task][f"{metric}_stderr,none"], rel=1e-4)


@needs_torch
@pytest.mark.parametrize(
    "more",
    [[], ["--apply-chat-template"], ["--batch-size", 3], ["--num-fewshot", 2]],
    ids=["raw", "chat", "batches", "fewshot"],
)
def test_with_a_memory_the_facts_are_answered_in_raw_text_and_in_the_chat_template(scored, trained, more):
    found, _ = scored(trained(ENGRAM), "--tasks", "engram", *more)
    for name in ("engram_colours_seen", "engram_colours_rephrased", "engram_seen", "engram_rephrased"):
        score = found[name, "exact_match"]
        assert (score["untouched"], score["with_adapter"], score["difference"]) == (0, 1, 1)
    assert found["engram_heldout", "exact_match"]["with_adapter"] == 0
    assert found["engram", "exact_match"]["with_adapter"] == pytest.approx(16 / 18)


@needs_torch
def test_a_base_model_with_a_memory_answers_the_exported_questions(
    harness, tasks, examples, tmp_path, monkeypatch, capsys
):
    model = in_float32(make_checkpoint(tmp_path / "base", chat=False))
    (made := tmp_path / "made").mkdir()
    (out := tmp_path / "out").mkdir()
    variant = variants.parse(ENGRAM, "test")
    model.train(variant, examples, 0, made, quiet)
    adapters.copy(made, out, variant)
    monkeypatch.chdir(tmp_path)
    where = ["--model", tmp_path / "base", "--backend", "cpu", "--include-path", tasks, "--out", "x.json"]
    assert command(out, "--tasks", "engram_seen", *where) == 0
    assert {score["with_adapter"] for score in json.loads(Path("x.json").read_text("utf-8"))["scores"]} == {1}
    assert command(out, "--tasks", "engram_seen", *where, "--apply-chat-template") == 2
    assert "--apply-chat-template: this model has no chat template" in capsys.readouterr().err.splitlines()[-1]


@needs_torch
def test_the_untouched_column_is_lm_eval_by_hand_and_so_is_the_one_with_a_memory(
    harness, checkpoint, tasks, scored, trained
):
    from engram_bench.pretrained import EngramMemory

    folder = trained(ENGRAM)

    def attach(model, tokenizer):
        return EngramMemory.from_pretrained(folder, model, tokenizer).attached(), model

    found, written = scored(folder, "--tasks", f"scored,{EXAMPLE}")
    assert {task for task, _ in found} == {"scored", EXAMPLE}
    same(found, by_hand(harness, checkpoint, tasks), "untouched")
    same(found, by_hand(harness, checkpoint, tasks, attach), "with_adapter")
    score = found["scored", "perplexity"]
    assert score["with_adapter"] < score["untouched"] / 10
    assert found[EXAMPLE, "acc"]["difference"] == 0, "no question of the example names a key"
    assert (written["variant"], written["tasks"]) == ("tiny-engram", sorted(["scored", EXAMPLE]))
    alone, written = scored("--tasks", f"scored,{EXAMPLE}")
    assert [score["untouched"] for score in alone.values()] == [score["untouched"] for score in found.values()]
    assert written["with_adapter"] is None


@needs_torch
@pytest.mark.parametrize("text", [LORA, ENGRAM_LORA], ids=["lora", "both"])
def test_a_lora_and_a_memory_trained_with_one_are_those_of_peft(harness, checkpoint, tasks, scored, trained, text):
    from contextlib import nullcontext

    from peft import PeftModel

    from engram_bench.pretrained import EngramMemory

    folder = trained(text)

    def attach(model, tokenizer):
        tuned = PeftModel.from_pretrained(model, folder)
        if text == LORA:
            return nullcontext(), tuned
        return EngramMemory.from_pretrained(folder, tuned, tokenizer).attached(), tuned

    found, _ = scored(folder, "--tasks", f"scored,{EXAMPLE}")
    same(found, by_hand(harness, checkpoint, tasks), "untouched")
    same(found, by_hand(harness, checkpoint, tasks, attach), "with_adapter")
    assert abs(found["scored", "perplexity"]["difference"]) > 1


@needs_torch
def test_a_control_runs_with_its_damaged_rows(scored, trained, monkeypatch):
    own = replace(variants.parse(ENGRAM, "test"), damage="zero")
    monkeypatch.setattr(lm_evaluation.adapters, "variant_of", lambda folder: own)
    found, _ = scored(trained(ENGRAM), "--tasks", "scored")
    assert found["scored", "perplexity"]["difference"] == pytest.approx(0, abs=1e-6)


@needs_torch
def test_options_reach_lm_eval(scored):
    _, written = scored("--tasks", EXAMPLE, "--limit", 5, "--num-fewshot", 1, "--batch-size", 2)
    assert written["untouched"]["n-samples"][EXAMPLE]["effective"] == 5
    assert written["untouched"]["n-shot"][EXAMPLE] == 1
    assert (written["limit"], written["num_fewshot"], written["batch_size"]) == (5, 1, 2)


@needs_torch
def test_dates_stay_text_in_lm_eval(harness, tmp_path):
    from lm_eval.tasks import TaskManager

    folder = exported(tmp_path, DATES)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = manager.load(["engram_days_seen"])["tasks"]["engram_days_seen"]
    asked = [(task.doc_to_text(doc).split()[0], task.doc_to_target(doc).strip()) for doc in task.eval_docs]
    assert asked == [(prompt, f"2023-05-{prompt[-2:]}") for prompt, _ in asked]


@needs_torch
@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("scored,hellaswagg", "has no task 'hellaswagg'; did you mean hellaswag"),  # one that comes with lm-eval
        ("engram,engram_seen", "engram, engram_seen: cannot be loaded (Duplicate task 'engram_colours_seen'"),
        ("gone", "gone: cannot be loaded (Unable to find"),
        ("remote", "remote: cannot be loaded ("),
    ],
)
def test_tasks_that_do_not_load_are_refused_before_a_model_is_looked_for(
    harness, tasks, tmp_path, no_model, capsys, monkeypatch, names, says
):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # otherwise, it tries for half a minute
    text = (tasks / "scored.yaml").read_text("utf-8")
    gone = text.replace("task: scored", "task: gone").replace("colours_seen", "colours_gone")
    remote = text.replace("task: scored", "task: remote").replace("dataset_path: json", "dataset_path: nobody/nothing")
    for name, changed in (("gone", gone), ("remote", remote)):
        (tmp_path / f"{name}.yaml").write_text(changed, "utf-8")
    for file in tasks.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert command("--tasks", names, "--include-path", tmp_path, "--backend", "cpu") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@needs_torch
def test_an_adapter_of_another_model_is_refused_before_the_untouched_model_is_asked(
    harness, trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(lm_evaluation, "_evaluated", lambda *_: pytest.fail("the untouched model was asked"))
    other = make_checkpoint(tmp_path / "other", hidden_size=64)
    capsys.readouterr()
    assert command(trained(LORA), "--tasks", EXAMPLE, "--model", other, "--backend", "cpu") == 2
    assert "name its model with --model" in capsys.readouterr().err.splitlines()[-1]


@needs_torch
def test_what_lm_eval_refuses_to_run_is_one_line(harness, tasks, tmp_path, checkpoint, capsys):
    text = (tasks / "scored.yaml").read_text("utf-8").replace("task: scored", "task: unsafe\nunsafe_code: true")
    (tmp_path / "unsafe.yaml").write_text(text, "utf-8")
    where = ["--include-path", tmp_path, "--model", checkpoint, "--backend", "cpu"]
    assert command("--tasks", "unsafe", *where) == 2
    assert "--tasks: unsafe: lm-eval cannot run this: " in capsys.readouterr().err.splitlines()[-1]
