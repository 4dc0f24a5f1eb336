"""The public names and the options of the commands, frozen in api.txt so that a change of them shows in the diff.

After a change that is meant: `python tests/test_api.py` writes the file anew.
"""

import argparse
import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FROZEN = ROOT / "tests" / "api.txt"


def public(name: str) -> bool:
    return not name.startswith("_")


def members(cls: ast.ClassDef) -> list[str]:
    """Public methods and fields of a class, as they are written."""
    found = []
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and public(node.name):
            found.append(f"{node.name}()")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and public(node.target.id):
            found.append(node.target.id)
    return found


def module_names(module: str, tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and public(node.name):
            yield f"{module}.{node.name}: {' '.join(members(node))}".rstrip(": ")
        elif isinstance(node, ast.FunctionDef) and public(node.name):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            yield f"{module}.{node.name}({', '.join(argument.arg for argument in arguments)})"


def python_names() -> Iterator[str]:
    for top in ("hetmodels", "inference"):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if parts[:2] != ("hetmodels", "cli") and all(map(public, parts)):
                yield from module_names(".".join(parts), ast.parse(file.read_text(encoding="utf-8")))


def options() -> Iterator[str]:
    from hetmodels.cli import COMMANDS

    for name in COMMANDS:
        parser = argparse.ArgumentParser(add_help=False)
        importlib.import_module(f"hetmodels.cli.{name}").add_arguments(parser)
        words = ["/".join(action.option_strings) or str(action.metavar or action.dest) for action in parser._actions]
        yield f"hetmodels {name}: {' '.join(words)}".rstrip(": ")


def listing() -> str:
    return "\n".join([*options(), *python_names()]) + "\n"


def test_public_names_and_options_are_the_frozen_ones():
    frozen, now = FROZEN.read_text(encoding="utf-8").splitlines(), listing().splitlines()
    gone = [f"- {line}" for line in frozen if line not in now]
    new = [f"+ {line}" for line in now if line not in frozen]
    cure = "If this is meant, run `python tests/test_api.py` and say so in CHANGELOG.md."
    assert not gone + new, "\n".join([*gone, *new, cure])


if __name__ == "__main__":
    FROZEN.write_text(listing(), encoding="utf-8")
