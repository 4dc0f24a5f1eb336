"""Which engine can fit which family: computed from what they declare, never typed."""

import importlib
from typing import Any

from hetmodels.families import FAMILIES
from inference import ENGINES


def load(path: str) -> Any:
    """The object at a dotted path."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def engines_for(model: Any) -> list[str]:
    """Short names of the engines that can fit a family (class or instance) or model function."""
    return [name for name, path in ENGINES.items() if load(path).lacks(model) is None]


def table() -> dict[str, dict[str, str | None]]:
    """family -> engine -> None where it works, else the sentence that says what is missing."""
    engines = {name: load(path) for name, path in ENGINES.items()}
    return {
        family: {name: engine.lacks(load(path)) for name, engine in engines.items()}
        for family, path in FAMILIES.items()
    }
