"""How modules depend on each other."""

import ast

from tests.running import ROOT

FOLDERS = {"engram_bench": "", "fixtures": "engram_bench.", "suites": "engram_bench."}
SPLIT_UP = ("engram_bench.backends.mlx.", "engram_bench.backends.torch.")  # a model and its parts still know each other


def imported(module, path, modules):
    """Modules of the package that one imports, inside functions and for type checkers too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            named = {f"{base}.{alias.name}" for alias in node.names}
            found |= named if named <= modules else named | {base}
    return found & modules - {module}


def test_nothing_imports_in_a_circle():
    paths = {
        prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder, prefix in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    left = {module: imported(module, path, paths.keys()) for module, path in paths.items()}
    assert "engram_bench.run.invocation" in left["engram_bench.fixtures.bench"]
    assert "engram_bench.fixtures.cells" in left["engram_bench.fixtures.bench"], "a relative one, for type checkers"
    while ends := {module for module, needed in left.items() if not needed & left.keys()}:
        left = {module: needed for module, needed in left.items() if module not in ends}
    circling = {module for module in left if any(module in needed for needed in left.values())}
    assert not {module for module in circling if not module.startswith(SPLIT_UP)}
