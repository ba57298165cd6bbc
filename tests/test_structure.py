"""The package's structure: no import cycles, and at most twelve top-level modules."""

import ast
from pathlib import Path

import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

PACKAGE = Path(__file__).parent.parent / "engram_bench"
MODULES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


def imported(file):
    """What a module of the package imports of it, wherever the statement stands: under TYPE_CHECKING, in a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:  # a module of that folder, or a name in its __init__.py
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in MODULES else node.module


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


def test_no_modules_import_each_other():
    assert circles({name: set(imported(file)) - {name} for name, file in MODULES.items()}) == []


def test_no_wings_import_each_other():
    arrows = {wing(name): set() for name in MODULES}
    for name, file in MODULES.items():
        arrows[wing(name)] |= {wing(other) for other in imported(file)} - {wing(name)}
    assert circles(arrows) == []


def test_a_dozen_modules_at_most_lie_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("circle", [{"a": {"b"}, "b": {"a"}}, {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}])
def test_a_circle_is_found(circle):
    assert circles(circle) == [sorted(circle.keys() - {"d"})]
