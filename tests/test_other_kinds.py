"""Methods that are not this package's: peft's own by name, and a kind that another package brings."""

import json
import shutil
from importlib.metadata import entry_points

import pytest

from engram_bench import variants
from engram_bench.errors import UsageError
from engram_bench.variants import kinds
from tests.conftest import PATTERNS, in_float32, needs_torch, quiet
from tests.running import ROOT, run_from_scratch

EXAMPLE = ROOT / "docs" / "steering"
PEFT = "name: x\nkind: peft\nabout: y\nmethod: {}\ntraining: {{epochs: 6, batch_size: 8, lr: 1.0e-2}}\n"


def method(name, **fields):
    return variants.parse(PEFT.format(name) + "".join(f"{key}: {value}\n" for key, value in fields.items()), "test")


@pytest.fixture(scope="module")
def model(checkpoint):
    return in_float32(checkpoint)


@needs_torch
@pytest.mark.parametrize(
    "variant",
    [method("IA3"), method("vera", options="{r: 8}"), method("LOHA", first_layer=1)],
    ids=["IA3", "VERA", "LOHA"],
)
def test_a_method_trains_loads_and_leaves_the_model_as_it_was(model, variant, examples, tmp_path):
    prompts = [model.encoder.prompt(example.prompt) for example in examples[:6]]
    untouched = model.generate(prompts, 8)
    training = model.train(variant, examples, 0, tmp_path, quiet)
    assert training.losses[-1] < training.losses[0]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == variant.config.method.upper()
    assert config.get("r", 8) == 8
    adapter = model.load_adapter(variant, tmp_path)
    assert adapter.parameter_count() > 0
    with model.attached(adapter):
        assert model.generate(prompts, 8) != untouched
    assert model.generate(prompts, 8) == untouched


@needs_torch
@pytest.mark.parametrize(
    ("variant", "says"),
    [
        (method("nonsense"), "method is 'nonsense'; peft's methods that fit are"),
        (method("PREFIX_TUNING"), "method is 'PREFIX_TUNING'; peft's methods that fit are"),
        (method("IA3", options="{ranks: 8}"), "options of method IA3"),
        (method("IA3", first_layer=1), "method IA3 adapts all layers; remove first_layer"),
        (method("MISS"), "MISS does not fit this model"),
    ],
    ids=["nonsense", "tokens", "option", "layer", "size"],
)
def test_what_does_not_fit_is_told_and_the_model_stays(model, variant, says, examples, tmp_path):
    names = [name for name, _ in model.model.named_modules()]
    with pytest.raises(UsageError, match=says):
        model.train(variant, examples, 0, tmp_path, quiet)
    assert [name for name, _ in model.model.named_modules()] == names


@needs_torch
def test_only_torch_has_it():
    from engram_bench.backends.base import adapter_class

    with pytest.raises(UsageError, match="kind peft has no adapter for mlx"):
        adapter_class(method("IA3"), "mlx")


@pytest.fixture
def installed(tmp_path):
    """The documentation's package, as pip would install it."""
    site = tmp_path / "site"
    (info := site / "steering-1.2.dist-info").mkdir(parents=True)
    shutil.copy(EXAMPLE / "steering.py", site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steering\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[engram_bench.kinds]\nsteering = steering:KIND\n")
    return site


@needs_torch
@pytest.mark.slow
def test_a_kind_of_another_package_is_measured_like_a_built_in_one(installed, checkpoint, own_cache, tmp_path):
    (tmp_path / "colours.yaml").write_text(PATTERNS)
    text = (EXAMPLE / "steering.yaml").read_text().replace("layer: 15", "layer: 1")
    (tmp_path / "steering.yaml").write_text(text)
    args = [
        "--engram-model", checkpoint, "--engram-patterns", tmp_path / "colours.yaml", "--engram-backend", "cpu",
        "--engram-variants", tmp_path / "steering.yaml", "--engram-profile", "smoke", "--engram-report",
        tmp_path / "runs", "-k", "accuracy",
    ]  # fmt: skip
    result = run_from_scratch(*args, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kind steering by steering 1.2" in result.stdout
    report = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    (found,) = [variant for variant in report["variants"] if variant["name"] == "steering"]
    assert found["package"] == "steering 1.2"
    assert found["trainable_parameters"] == 32
    assert "(by steering 1.2)" in (tmp_path / "runs" / "latest" / "report.md").read_text()


def test_what_fails_in_another_package_is_told_as_its_own(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    (installed / "steering.py").write_text("raise RuntimeError('no layer here')")
    assert "steering" in {point.name for point in entry_points(group=kinds.GROUP)}
    with pytest.raises(UsageError, match=r"kind steering of the package steering 1.2 fails: RuntimeError: no layer"):
        variants.parse("name: x\nkind: steering\nabout: y\n", "test")
    assert "steering" not in kinds.KINDS


def test_an_unknown_kind_lists_those_of_other_packages_too(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(UsageError, match=r"kind is 'steer'; use one of none, .*, steering"):
        variants.parse("name: x\nkind: steer\nabout: y\n", "test")
