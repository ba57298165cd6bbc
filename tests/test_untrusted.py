"""Untrusted files: each is either read or refused with a one-line error, never with a traceback."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_bench import variants
from engram_bench.data import patterns
from engram_bench.errors import UsageError
from engram_bench.memory import weights
from engram_bench.report import gate
from engram_bench.report.gate_text import section
from engram_bench.report.markdown import section as as_markdown
from engram_bench.report.terminal import write_gate
from engram_bench.report.text import safe
from tests.conftest import ENGRAM, LORA, PATTERNS
from tests.running import ROOT
from tests.test_gate import a_report

pytestmark = pytest.mark.slow

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nname: *b\n"
NESTED = "[" * 5000
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


def edits(text):
    """The text with some of it cut out and something put in."""
    place = st.integers(0, len(text))
    filler = st.text(max_size=6) | st.sampled_from(
        [BOMB, NESTED, "\x1b[2J", "2024-13-45", "*a", "!!python/name:os.system"]
    )
    return st.builds(lambda a, b, new: text[: min(a, b)] + new + text[max(a, b) :], place, place, filler)


def paths(data):
    """Every place in nested data, as a list of keys."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [[]] + [[key, *rest] for key, value in inside for rest in paths(value)]


def replaced(data, path, value):
    if not path:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = replaced(data[path[0]], path[1:], value)
    return copy


@FUZZ
@given(text=edits(PATTERNS))
def test_a_pattern_file_is_read_or_refused(tmp_path, text):
    file = tmp_path / "p.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        for category in patterns.load(file).categories.values():
            assert re.fullmatch(r"[\w.-]+", category.name)
    except UsageError as refused:
        told = str(refused)
        assert str(file) in told or "is in" in told


@FUZZ
@given(text=edits(ENGRAM) | edits(LORA))
def test_a_variant_is_read_or_refused(text):
    try:
        assert re.fullmatch(r"[\w-][\w.-]*", variants.parse(text, "v.yaml").name)
    except UsageError as refused:
        told = str(refused)
        assert told.startswith("v.yaml")


@pytest.mark.parametrize("text", [BOMB, NESTED, "when: 2024-13-45", f"rank: {'9' * 5000}", "? [a]\n: b"])
def test_a_variant_that_is_an_attack_is_refused(text):
    with pytest.raises(UsageError, match=r"^v\.yaml"):
        variants.parse(text, "v.yaml")


REPORT = json.loads(json.dumps(a_report(items=8)))


@FUZZ
@given(path=st.sampled_from(paths(REPORT)), value=values)
def test_a_report_is_compared_or_refused(tmp_path, path, value):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(replaced(REPORT, path, value)))
    lines = []
    try:
        other = gate.read(file)
        gate.refuse(other, gate.fingerprints(REPORT), "b")
        for pair in ((other, REPORT), (REPORT, other)):
            found = gate.compare(*pair, {"exact": 0.02, "consistency": 0.05})
            write_gate(lines.append, found)
            as_markdown(section(found, safe)).encode()
    except UsageError as error:
        lines.append(str(error))
    assert all(re.fullmatch(r"[^\x00-\x1f\x7f-\x9f]*", line) for line in lines), "nothing that steers a terminal"


@FUZZ
@given(text=edits(json.dumps(REPORT)))
def test_a_torn_report_is_compared_or_refused(tmp_path, text):
    file = tmp_path / "report.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        gate.compare(gate.read(file), REPORT, {"exact": 0.02})
    except UsageError as refused:
        told = str(refused)
        assert str(file) in told


@FUZZ
@given(config=st.binary(max_size=60) | values.map(lambda v: json.dumps(v).encode()), tensors=st.binary(max_size=200))
def test_an_adapter_is_loaded_or_refused(tmp_path, config, tensors):
    (tmp_path / weights.CONFIG).write_bytes(config)
    (tmp_path / weights.WEIGHTS).write_bytes(tensors)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        weights.load(tmp_path, "engram", {})


def test_a_report_cannot_steer_a_terminal_or_break_out_of_markdown():
    samples = {"engram\x1b[31m": 1.0, "<script>|`": 1.0}
    before, after = (json.loads(json.dumps(a_report(wrong=w))) for w in (set(), set(range(30))))
    for report in (before, after):
        for outcome in report["outcomes"]:
            outcome["variant"], outcome["category"] = samples
    found = gate.compare(before, after, {"exact": 0.02})
    lines = []
    write_gate(lines.append, found)
    assert lines[0].startswith("regressed: ")
    assert "\x1b" not in "".join(lines) + as_markdown(section(found, safe))
    assert "<script" not in as_markdown(section(found, safe))


def test_nothing_here_unpickles_or_runs_code_of_a_model():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "engram_bench").rglob("*.py"))
    unsafe = r"import pickle|torch\.load\(|trust_remote_code\s*=\s*True|yaml\.(unsafe|full)_?load"
    call = r"(?<![.\w])(?<!def )(eval|exec)\("
    assert not re.search(f"{unsafe}|{call}", code)
