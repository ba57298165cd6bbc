"""Variant files: the built-in ones, and the error messages for bad ones."""

import itertools
from dataclasses import dataclass, fields

import pytest

from engram_bench import options, variants
from engram_bench.backends import base
from engram_bench.backends.base import WithoutNgrams
from engram_bench.errors import UsageError
from engram_bench.variants import kinds
from engram_bench.variants.configs import Config
from engram_bench.variants.kinds import Kind
from tests.conftest import ENGRAM, LORA


@dataclass(frozen=True)
class ConstantConfig(Config):
    bias: int

    def __post_init__(self):
        if self.bias == 13:
            raise ValueError("bias is 13, expected another number")


class ConstantAdapter(WithoutNgrams):
    """Does nothing; a kind of somebody's own."""

    @classmethod
    def load(cls, model, config, encoder, folder):
        return cls()


@pytest.fixture
def constant(monkeypatch):
    """A variant of a kind that is registered here."""
    monkeypatch.setattr(kinds, "KINDS", dict(kinds.KINDS))
    for module in (variants, base):
        monkeypatch.setattr(module, "KINDS", kinds.KINDS)
    kinds.register(Kind("constant", ConstantConfig, {"torch": f"{__name__}:ConstantAdapter"}))
    return "{name: mine, kind: constant, about: x, bias: %d, training: {epochs: 1, batch_size: 1, lr: 1}}"


def test_a_registered_kind_has_its_config_and_its_adapters(constant):
    variant = variants.parse(constant % 3, "mine.yaml")
    assert variant.config == ConstantConfig(3)
    made_by = base.adapter_class(variant, "torch")
    assert isinstance(made_by.load(None, variant.config, None, None), ConstantAdapter)
    with pytest.raises(UsageError, match=r"^mine\.yaml: bias is 13, expected another number$"):
        variants.parse(constant % 13, "mine.yaml")
    with pytest.raises(UsageError, match="kind constant has no adapter for mlx"):
        base.adapter_class(variant, "mlx")


def test_every_built_in_variant_loads():
    for name in variants.BUILT_IN:
        (baseline, *rest) = variants.select(name)
        assert baseline.name == "baseline"
        assert [v.name for v in rest] == ([] if name == "baseline" else [name])


@pytest.mark.parametrize("name", sorted({*variants.LADDER, *variants.ABLATIONS}))
def test_every_rung_and_every_ablation_loads_and_has_its_files_name(name):
    assert variants.select(name)[1].name == name


def changes(one, other):
    """The fields in which two variants differ."""
    pairs = [(one.config, other.config), (one.training, other.training), (one, other)]
    found = [(f.name, getattr(a, f.name), getattr(b, f.name)) for a, b in pairs for f in fields(a)]
    own = ("name", "about", "control", "config", "training")
    return [name for name, a, b in found if a != b and name not in own]


def test_each_rung_of_the_ladder_is_one_change_from_the_one_before():
    ladder = variants.select("ladder")[1:]
    assert [changes(*two) for two in itertools.pairwise(ladder)] == [
        ["orders"], ["orders"], ["span"], ["layers"], ["span"], ["acts"], ["orders"], ["kernel"], ["bias"], ["heads"],
        ["lr"], ["order_dropout"],
    ]  # fmt: skip
    assert (ladder[0].name, ladder[-1].name) == ("engram", "engram-keyed")


def test_each_ablation_is_one_change_of_the_papers_memory():
    paper, *rest = variants.select("ablations")[1:]
    assert [changes(paper, one) for one in rest] == [
        ["gate"], ["compression"], ["kernel"], ["layers"], ["layers"], ["rows"], ["adapter_of", "damage"],
        ["adapter_of", "damage"],
    ]  # fmt: skip


def test_the_papers_memory_has_the_published_shape():
    (_, paper) = variants.select("engram")
    config = paper.config.for_depth(30)
    assert (config.layer_ids, config.orders, config.heads, config.taps) == ([2, 15], [2, 3], 8, [9, 6, 3])
    assert all([config.gate, config.bias, config.compression, config.acts_on_template, config.acts_on_text])
    assert not any([config.keyed, config.order_dropout])


def test_groups_of_variants_may_stand_beside_names_and_a_run_of_all_holds_neither_rungs_nor_ablations():
    chosen = [variant.name for variant in variants.select("lora,ladder,ablations")]
    assert chosen == list(dict.fromkeys(["baseline", "lora", *variants.LADDER, *variants.ABLATIONS]))
    assert [variant.name for variant in variants.select("all")] == list(variants.BUILT_IN)
    controls = {"engram-one-slot", "engram-shuffled", "engram-zeroed"}
    extra = {*variants.LADDER, *variants.ABLATIONS} - {"engram", "engram-keyed"} - controls
    assert not extra & {*variants.BUILT_IN}


@pytest.mark.parametrize("name", ["engram", "engram-keyed"])
def test_a_control_is_its_variant_but_for_the_damage(name):
    engram, control = variants.select(f"{name},{name}-shuffled")[1:]
    assert (control.config, control.training) == (engram.config, engram.training)
    assert (control.adapter_of, control.damage) == (name, "shuffle")


@pytest.mark.parametrize("name", ["lora", "engram-keyed"])
def test_a_bare_variant_differs_in_its_questions_alone(name):
    usual, bare = variants.select(f"{name},{name}-bare")[1:]
    assert (bare.config, bare.training, bare.control) == (usual.config, usual.training, usual.control)
    assert (usual.questions, bare.questions) == ("", "bare")


def test_a_routed_variant_is_its_variant_behind_a_router():
    keyed, routed = variants.select("engram-keyed,engram-routed")[1:]
    assert (routed.config, routed.training, routed.adapter_of) == (keyed.config, keyed.training, "engram-keyed")
    assert (routed.router, routed.control) == ("learned", False)


@pytest.mark.parametrize("name", ["engram-keyed", "engram-keyed-one-slot"])
def test_the_layers_of_built_in_memories_are_places_in_any_depth(name):
    (_, variant) = variants.select(name)
    for depth in range(2, 65):
        placed = variant.config.for_depth(depth).layer_ids
        assert placed == sorted(set(placed))
        assert depth // 2 <= placed[0] <= placed[-1] < depth
    assert variant.config.for_depth(30).layer_ids == [16, 24]
    assert variant.config.for_depth(24).layer_ids == [12, 19]
    assert variant.config.for_depth(2).layer_ids == [1]


def test_a_layer_may_be_a_number_and_has_to_be_there():
    config = variants.parse(ENGRAM.replace("[0, 1]", "[1, 0.5]"), "test").config
    assert config.for_depth(12).layer_ids == [1, 6]
    with pytest.raises(ValueError, match="layer 1 does not exist: this model has layers 0 to 0"):
        config.check(1)
    with pytest.raises(UsageError, match="a place is a share of the depth below 1"):
        variants.parse(ENGRAM.replace("[0, 1]", "[1.5]"), "test")


def test_the_unigram_memory_has_its_published_settings():
    (_, unigram) = variants.select("engram-unigram")
    assert unigram.config.slots == 500
    assert (unigram.training.epochs, unigram.training.lr, unigram.training.clip) == (3, 1e-3, 1.0)


def test_a_users_own_file_works_the_same(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(ENGRAM)
    assert variants.select(str(file))[1].config.width == 8


BAD = {
    "unknown kind": (LORA.replace("kind: lora", "kind: lroa"), "kind is 'lroa'"),
    "unknown field": (LORA + "rnak: 4\n", "unknown field 'rnak'"),
    "missing field": (LORA.replace("rank: 4\n", ""), "'rank' is missing"),
    "wrong type": (LORA.replace("rank: 4", "rank: four"), "rank is 'four'"),
    "negative": (LORA.replace("rank: 4", "rank: -4"), "rank is -4"),
    "unknown training field": (LORA.replace("epochs: 3", "epochs: 3, epoch: 4"), "unknown field 'epoch'"),
    "no training": (LORA[: LORA.index("training")], "'epochs' is missing"),
    "not a mapping": ("- 1\n", "expected a mapping"),
    "not YAML": ("name: [\n", "not valid YAML"),
    "no layers": (ENGRAM.replace("[0, 1]", "[]"), "at least one number"),
    "unknown span": (ENGRAM + "span: every\n", "span is 'every'"),
    "unknown place to act": (ENGRAM + "acts: never\n", "acts is 'never'"),
    "at the answer alone without a key": (ENGRAM + "span: all\nacts: answer\n", "only with span: key"),
    "a convolution over one token": (ENGRAM + "kernel: 1\n", "kernel is 1"),
    "zero": (LORA.replace("rank: 4", "rank: 0"), "expected 1 or more"),
    "kind that is a list": (LORA.replace("kind: lora", "kind: [lora]"), "kind is ['lora']"),
    "training that is a number": (LORA[: LORA.index("training")] + "training: 5\n", "expected a mapping"),
    "descending orders": (ENGRAM.replace("[2, 3, 4]", "[4, 3, 2]"), "ascend"),
    "unknown questions": (LORA + "questions: few\n", "questions is 'few'; use rich or bare"),
    "questions of what trains nothing": ("name: x\nkind: none\nabout: y\nquestions: bare\n", "remove questions"),
    "all dropped": (ENGRAM + "order_dropout: 1.5\n", "a share below 1"),
    "a path for a name": (LORA.replace("name: tiny-lora", "name: ../x"), "use letters"),
    "control of lora": ("name: x\nabout: y\nadapter_of: lora\ndamage: shuffle\n", "use a memory"),
    "control of itself": ("name: x\nabout: y\nadapter_of: mine.yaml\ndamage: shuffle\n", "built-in"),
    "half a control": ("name: x\nabout: y\nadapter_of: engram\n", "one change"),
    "unknown damage": ("name: x\nabout: y\nadapter_of: engram\ndamage: burn\n", "one change"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_says_what_is_wrong_in_one_line(name):
    text, reason = BAD[name]
    with pytest.raises(UsageError) as caught:
        variants.parse(text, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", ["engrm", "none.yaml"])
def test_an_unknown_name_or_file_is_refused(names):
    with pytest.raises(UsageError, match=names):
        variants.select(names)


def test_two_variants_of_one_name_are_refused(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(LORA)
    with pytest.raises(UsageError, match="chosen twice"):
        variants.select(f"{tmp_path / 'a.yaml'},{tmp_path / 'b.yaml'}")


def test_the_epochs_of_a_file_of_ones_own_stand_in_every_profile(tmp_path):
    (tmp_path / "mine.yaml").write_text(LORA)
    given = {"engram_profile": "smoke", "engram_variants": f"lora,{tmp_path}/mine.yaml"}
    lora, mine = options.settle(given, lambda _: "").variants[1:]
    assert mine.training == variants.parse(LORA, "mine.yaml").training
    assert lora.training.epochs == options.PROFILES["smoke"].epochs["lora"] != mine.training.epochs


@pytest.mark.parametrize("kind", ["none", "dictionary"])
def test_training_of_what_trains_nothing_is_refused(kind):
    with pytest.raises(UsageError, match="trains nothing"):
        variants.parse(f"name: x\nkind: {kind}\nabout: x\ntraining: {{epochs: 1}}", "x.yaml")


@pytest.mark.parametrize("name", sorted({*variants.BUILT_IN, *variants.LADDER, *variants.ABLATIONS}))
def test_a_variant_written_as_yaml_is_read_as_the_same(name):
    variant = variants.select(name)[-1]
    assert variants.parse(variants.dump(variant), "test") == variant
