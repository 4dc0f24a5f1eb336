"""Imports go one way only: from the command line down to the imaging code."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the lowest to the highest; members of one layer may import each other.
LAYERS = [
    ("hetmodels.tree", "hetmodels.errors", "hetmodels.run_directory"),
    ("hetmodels.imaging",),
    ("hetmodels.volumes",),
    ("hetmodels.data",),
    ("hetmodels.families",),
    (
        "hetmodels.arviz_bridge",
        "hetmodels.container",
        "hetmodels.initial",
        "hetmodels.observation",
        "hetmodels.packed_bank",
        "hetmodels.laplace",
        "hetmodels.contrast",
        "hetmodels.local",
        "hetmodels.model",
        "hetmodels.moving",
        "hetmodels.problem",
        "hetmodels.plain",
        "hetmodels.polish",
        "hetmodels.pose_local",
        "hetmodels.pose_sum",
        "hetmodels.posterior",
        "hetmodels.recipe",
        "hetmodels.scoring",
        "hetmodels.search",
        "hetmodels.selection",
        "hetmodels.smooth",
        "hetmodels.testing",
    ),
    ("inference",),
    ("hetmodels.analysis",),
    ("hetmodels.report",),
    ("hetmodels.cli",),
]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for top in ("hetmodels", "inference") for file in sorted((ROOT / top).rglob("*.py"))}


def layer(module: str) -> int:
    """Number of the layer; the root package, which holds the version only, lies below all."""
    if module == "hetmodels":
        return -1
    for number, members in enumerate(LAYERS):
        if any(module == member or module.startswith(member + ".") for member in members):
            return number
    raise AssertionError(f"{module} is in no layer: add it to LAYERS in {Path(__file__).name}.")


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when a file is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from outside_functions(node)


def imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Our modules that statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the full name instead of a relative import."
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("hetmodels", "inference"))


def violations(module: str, tree: ast.AST) -> list[str]:
    found = []
    for target in imports(ast.walk(tree)):
        if layer(target) > layer(module):
            found.append(f"{module} imports {target}, which lies above it.")
        if target.split(".")[0] == "inference" and module.startswith("hetmodels.analysis"):
            found.append(f"{module} imports the engines; only hetmodels.cli may, inside functions.")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert not violations(module, tree)
    if module.startswith("hetmodels."):
        eager = [name for name in imports(outside_functions(tree)) if name.split(".")[0] == "inference"]
        assert not eager, f"{module} imports {eager[0]} at its top; only hetmodels.cli may, inside functions."


@pytest.mark.parametrize(
    ("module", "code", "words"),
    [
        ("hetmodels.imaging.ctf", "from hetmodels.families import FAMILIES", "which lies above it"),
        ("hetmodels.families.classes", "def f():\n    import inference.em", "which lies above it"),
        ("hetmodels.analysis.fsc", "from inference import fit", "only hetmodels.cli may"),
    ],
)
def test_the_guard_sees_violations(module, code, words):
    assert any(words in text for text in violations(module, ast.parse(code)))


def test_the_guard_tells_the_top_of_a_file_from_its_functions():
    tree = ast.parse(
        "import inference.em\nclass A:\n    import inference.map\n    def f(self):\n        import inference"
    )
    assert list(imports(outside_functions(tree))) == ["inference.em", "inference.map"]


def test_a_module_outside_all_layers_is_noticed():
    with pytest.raises(AssertionError, match=r"hetmodels\.misc is in no layer"):
        layer("hetmodels.misc")
