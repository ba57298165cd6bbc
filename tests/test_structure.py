"""The package's structure: no import cycles, and at most twelve top-level modules."""

import ast
from pathlib import Path

import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "engram_bench"


def modules():
    """Every module by its dotted name; fixtures and suites lie in the package once it is installed."""
    found = {}
    for folder, inside in ((PACKAGE, ROOT), (ROOT / "fixtures", PACKAGE), (ROOT / "suites", PACKAGE)):
        for file in folder.rglob("*.py"):
            parts = (inside / file.relative_to(folder.parent)).relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


MODULES = modules()


def imported(module):
    """What a module of the package imports of it, wherever the statement stands: under TYPE_CHECKING, in a function."""
    file = MODULES[module]
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # a module of that folder, or a name in its __init__.py
                yield from [name for name in (f"{base}.{alias.name}", base) if name in MODULES][:1]


def circles(arrows):
    """Groups of names that import each other; `arrows`: what each name imports."""
    names = sorted(arrows)
    rows, columns = zip(*((names.index(a), names.index(b)) for a in names for b in arrows[a]), strict=True)
    graph = csr_array(([1] * len(rows), (rows, columns)), shape=(len(names), len(names)))
    _, group = connected_components(graph, directed=True, connection="strong")
    together = [[name for name, g in zip(names, group, strict=True) if g == n] for n in set(group)]
    return [found for found in together if len(found) > 1]


def wing(module):
    """The folder or top-level module that a module belongs to."""
    return ".".join(module.split(".")[:2])


def test_relative_imports_and_those_in_functions_are_seen():
    assert "engram_bench.fixtures.cells" in imported("engram_bench.fixtures.bench")
    assert "engram_bench.run.bench" in imported("engram_bench.fixtures.bench")


def test_no_modules_import_each_other():
    assert circles({name: set(imported(name)) - {name} for name in MODULES}) == []


def test_no_wings_import_each_other():
    arrows = {wing(name): set() for name in MODULES}
    for name in MODULES:
        arrows[wing(name)] |= {wing(other) for other in imported(name)} - {wing(name)}
    assert circles(arrows) == []


def test_a_dozen_modules_at_most_lie_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("circle", [{"a": {"b"}, "b": {"a"}}, {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}])
def test_a_circle_is_found(circle):
    assert circles(circle) == [sorted(circle.keys() - {"d"})]
