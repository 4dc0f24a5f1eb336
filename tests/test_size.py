"""Files and functions stay small enough to be read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES = 400, 60

# What may be longer, with its length and the reason. This list may only shrink.
EXCEPTIONS: dict[str, tuple[int, str]] = {}

FILES = [
    file for top in ("hetmodels", "inference", "tests", "examples", "benchmarks") for file in (ROOT / top).rglob("*.py")
]


def too_long(file: Path) -> dict[str, int]:
    """Names and lengths of what passes the limits in a file."""
    text, name = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))
    sizes = {name: text.count("\n")} if text.count("\n") > FILE_LINES else {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                sizes[f"{name}:{node.name}"] = lines
    return sizes


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_small(file):
    for name, lines in too_long(file).items():
        allowed, _ = EXCEPTIONS.get(name, (0, ""))
        assert lines <= allowed, (
            f"{name} has {lines} lines; the limits are {FILE_LINES} and {FUNCTION_LINES}. Split it."
        )


def test_exceptions_are_still_needed_and_have_a_reason():
    actual = {name: lines for file in FILES for name, lines in too_long(file).items()}
    for name, (allowed, reason) in EXCEPTIONS.items():
        assert reason and actual.get(name) == allowed, f"{name} has changed: lower or remove its exception."
