"""Write docs/reference.md from the program itself: options of the commands, settings, and the Python entry points.

`python docs/make_reference.py` after a change of any of them; a test compares the page with what this writes.
"""

import argparse
import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("reference.md")
OBJECTS = {
    "Data": ["hetmodels.data.Particles", "hetmodels.data.fields.Overrides"],
    "Observation": [
        f"hetmodels.observation.{name}"
        for name in ("Known", "Refined", "Unknown", "Radial", "FixedNoise", "Contrast", "Outliers")
    ],
    "Fitting": ["inference.fit", "hetmodels.posterior.Posterior", "hetmodels.model.observe"],
    "Contracts": [
        *(
            f"hetmodels.families.protocol.{name}"
            for name in ("Family", "Linear", "Moving", "Parts", "Gridded", "Gaussian", "Frame")
        ),
        "hetmodels.volumes.protocol.Volume",
        "inference.engine.Engine",
    ],
    "Checks for authors": [
        "hetmodels.testing.check_volume",
        "hetmodels.testing.check_family",
        "inference.testing.check_engine",
    ],
}


def page() -> str:
    """The whole page."""
    head = (
        "# Reference\n\nMade by `docs/make_reference.py` from the program; do not edit. Units: Å, 1/Å, radians, kV.\n"
    )
    return "\n".join([head, *_commands(), *_settings(), *_objects()]).rstrip() + "\n"


def _commands() -> Iterator[str]:
    from hetmodels.cli import COMMANDS

    yield "## Commands\n"
    for name, text in COMMANDS.items():
        parser = argparse.ArgumentParser(add_help=False)
        importlib.import_module(f"hetmodels.cli.{name}").add_arguments(parser)
        yield f"### hetmodels {name}\n\n{text[0].upper()}{text[1:]}.\n"
        yield from map(_option, parser._actions)
        yield ""


def _option(action: argparse.Action) -> str:
    """One line for an option or an argument."""
    value = action.metavar if action.metavar is not None else "|".join(map(str, action.choices or ()))
    words = " ".join([", ".join(action.option_strings), str(value or "")]).strip() or action.dest
    return f"- `{words}`: {(action.help or '').replace('%%', '%')}"


def _settings() -> Iterator[str]:
    from hetmodels.cli.listing import describe, settings_text
    from hetmodels.families import FAMILIES
    from inference import ENGINES

    for kind, registry, title in (("family", FAMILIES, "Families"), ("engine", ENGINES, "Engines")):
        yield f"## {title}\n"
        for name in registry:
            entry = describe(name, registry, kind)
            yield f"### {name}\n\n`{entry['class']}`: {entry['summary']}\n"
            yield f"```text\n{settings_text(entry, kind)}\n```\n"


def _objects() -> Iterator[str]:
    for title, names in OBJECTS.items():
        yield f"## {title}\n"
        for name in names:
            module, _, own = name.rpartition(".")
            thing = getattr(importlib.import_module(module), own)
            yield f"### {name}\n\n```text\n{_signature(own, thing)}\n\n{inspect.getdoc(thing)}\n```\n"
            if inspect.isclass(thing):
                yield from _methods(thing)


def _signature(name: str, thing: Any) -> str:
    if dataclasses.is_dataclass(thing):
        return f"{name}({', '.join(field.name for field in dataclasses.fields(thing))})"
    if inspect.isclass(thing):
        return name
    return f"{name}({', '.join(inspect.signature(thing).parameters)})"


def _methods(cls: type) -> Iterator[str]:
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        words = [word for word in inspect.signature(function).parameters if word not in ("self", "cls")]
        first = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
        yield f"- `{name}({', '.join(words)})`: {first}"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
