"""Who imports whom: arrows point one way, without a circle, and nobody calls on the reference."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "margin_ext"
FILES = {
    ".".join(("margin_ext", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in PACKAGE.rglob("*.py")
}
# Parts of the package from the bottom up; one may import those before it. Modules at the top level
# that are not named here are the bottom.
LAYERS = (
    ("reference",),
    ("functional",),
    ("input_gradient", "threat", "random_points"),
    ("gradient_mode", "loss_options"),
    ("gradient_modes",),
    ("option_attributes",),
    ("loss",),
    ("models", "output", "data"),
    ("attacks", "bounds"),
    ("measurement", "ledger"),
    ("training", "reproduction", "integrations"),
    ("command_line", "__main__"),
    ("_api",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS, start=1) for name in names}


def module_name(name: str) -> str:
    return name.removesuffix(".__init__")


def imports(path: Path, own: str) -> Iterator[str]:
    """Modules of the package that a file imports when it runs, in functions too."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("margin_ext"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("margin_ext"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner in FILES or f"{inner}.__init__" in FILES
                # Parts of a package that are taken from the package itself are its __init__'s.
                yield inner if is_module and f"{node.module}.__init__" in FILES else node.module


IMPORTS = {name: set(imports(path, name)) for name, path in FILES.items()}


def part(name: str) -> str:
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_never_run_upwards(name):
    if part(name) == "__init__":  # the public face
        return
    own = LEVEL.get(part(name), 0)
    upwards = [other for other in IMPORTS[name] if LEVEL.get(part(other), 0) > own]
    assert not upwards


def test_only_the_dispatch_imports_the_reference():
    found = {
        name
        for name, others in IMPORTS.items()
        if part(name) != "reference" and any(part(other) == "reference" for other in others)
    }
    assert found == {"margin_ext.functional.dispatch"}


def test_the_reference_shares_no_formula_with_the_functional_layer():
    for name, others in IMPORTS.items():
        if part(name) == "reference":
            assert not any(part(other) in ("functional", "gradient_modes") for other in others), (
                name
            )


def test_there_is_no_circle():
    """Between modules; a package's __init__ imports its modules, not the other way round."""
    graph = {
        name: {f"{o}.__init__" if f"{o}.__init__" in FILES else o for o in others}
        for name, others in IMPORTS.items()
        if name != "margin_ext.__init__"
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done or name not in graph:
            return
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_the_test_sees_imports():
    assert "margin_ext.functional.dispatch" in IMPORTS["margin_ext.functional.class_gap"]
    assert "margin_ext.reference" in IMPORTS["margin_ext.functional.dispatch"]
    assert len(FILES) > 100
