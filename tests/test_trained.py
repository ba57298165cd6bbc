"""The adapters of a run: which questions each variant is trained on."""

import pytest

from engram_bench import options
from engram_bench.run.recorder import Recorder
from engram_bench.run.trained import TrainedAdapters
from engram_bench.store import models
from tests.conftest import LORA, in_float32, quiet

PATTERNS = "name: desk\nexamples:\n" + "".join(f'  - {{input: "DESK:{n}", output: "room {n}"}}\n' for n in range(8))


@pytest.mark.parametrize("run", ["rich", "bare"])
def test_a_variant_may_name_its_questions_whatever_the_run_trains_on(checkpoint, own_cache, tmp_path, run):
    (tmp_path / "desk.yaml").write_text(PATTERNS)
    one_epoch = LORA.replace("epochs: 3", "epochs: 1")
    for name, more in (("usual", ""), ("bare", "questions: bare\n"), ("rich", "questions: rich\n")):
        (tmp_path / f"{name}.yaml").write_text(one_epoch.replace("tiny-lora", name) + more)
    files = ",".join(str(tmp_path / f"{name}.yaml") for name in ("usual", "bare", "rich"))
    given = {"engram_patterns": str(tmp_path / "desk.yaml"), "engram_variants": files, "engram_training": run}
    settings = options.settle(given, lambda _: "")
    model = models.resolve(str(checkpoint))
    adapters = TrainedAdapters(settings, model, in_float32(checkpoint), Recorder(), lambda _: quiet, lambda: "run")
    usual, bare, rich = (adapters.trained(variant, 0).training for variant in settings.variants[1:])
    assert bare.examples < rich.examples
    assert (bare.replay, rich.replay > 0) == (0, True)
    assert usual.examples == {"rich": rich, "bare": bare}[run].examples
